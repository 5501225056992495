"""The reports in a real browser, without a network: sorting, choosing, a phone's width, print."""

import pytest
import torch

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow.diagnostics import report
from steadyflow_lab import demo
from steadyflow_lab import report as demo_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    images, labels = (part[:6] for part in digits("held-out"))
    subject = demo.Subject(sf.load("digits"), images, labels, (labels + 5) % 10, ["another digit"] * 6)
    return demo_report.write(demo.study(subject, nfe=12), tmp_path_factory.mktemp("report") / "report.html")


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def test_the_report_needs_nothing_from_elsewhere_and_says_nothing_on_the_console(browser, page):
    browser.get(page.as_uri())
    asked = [
        entry["message"] for entry in browser.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert not [message for message in asked if '"url":"http' in message]
    assert browser.get_log("browser") == []
    assert all(image.get_attribute("alt") for image in find(browser, "img"))
    assert all(image.get_property("naturalWidth") > 0 for image in find(browser, "img"))


def test_tables_are_sorted_by_a_click_and_back_by_another(browser, page):
    browser.get(page.as_uri())
    heads = find(browser, "table.sortable th")
    column = [head.text for head in heads].index("edit 7.5")

    def values():
        rows = find(browser, "table.sortable tbody tr")
        cells = [row.find_elements("css selector", "td")[column].text for row in rows]
        return [float(cell.removesuffix("%")) / (100 if "%" in cell else 1) for cell in cells]

    before = values()
    heads[column].click()
    assert values() == sorted(before)
    assert heads[column].get_attribute("aria-sort") == "ascending"
    heads[column].click()
    assert values() == sorted(before, reverse=True)


def test_two_solvers_of_the_readers_choice_stand_side_by_side(browser, page):
    from selenium.webdriver.support.ui import Select

    browser.get(page.as_uri())
    first, second = (Select(element) for element in find(browser, ".choices select"))

    def seen():
        return [part.get_attribute("data-choice") for part in find(browser, "section") if part.is_displayed()]

    assert seen() == ["ddim", "rex, automatic coupling"]
    first.select_by_visible_text("rk4")
    assert seen() == ["rk4", "rex, automatic coupling"]
    second.select_by_visible_text("rk4")
    assert seen() == ["rk4"]


def test_the_report_is_readable_on_a_phone(browser, page):
    browser.set_window_size(390, 844)
    browser.get(page.as_uri())
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.execute_script("return window.innerWidth")
    browser.set_window_size(1200, 900)


def test_printing_shows_every_solver(browser, page):
    browser.get(page.as_uri())
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert all(part.is_displayed() for part in find(browser, "section"))
    assert not any(bar.is_displayed() for bar in find(browser, ".choices"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert browser.print_page()  # a PDF


def test_without_scripts_everything_is_there(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(page.as_uri())
    assert len([part for part in find(browser, "section") if part.is_displayed()]) == 5
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_diagnosis_lists_its_images_and_sorts_them(browser, tmp_path):
    mixture = sf.GaussianMixture.grid(2).denoiser(sf.VPCosine())
    found = sf.diagnose(mixture, mixture.mixture.sample(5), solver="ddim", steps=4)
    browser.get(report.write(found, tmp_path / "d.html").as_uri())
    head = next(h for h in find(browser, "table.sortable th") if h.text == "measured")
    head.click()
    cells = [
        row.find_elements("css selector", "td")[1].text
        for row in find(browser, "table")[0].find_elements("css selector", "tbody tr")
    ]
    assert cells == [f"{v:.3g}" for v in torch.sort(found.measured).values.tolist()]
    assert browser.get_log("browser") == []
