"""Nothing is fetched by any test, and each uses one thread, as two of them run at a time.

Matplotlib keeps a list of fonts in the user's cache, for all environments of a machine. A list made by an
environment that is gone holds none of the fonts that matplotlib brings, and each figure then warns of them.
The tests therefore keep a list of their own, which the processes that they start share.

Ray's workers are as urgent as any other process here. At their usual niceness of 15, beside two processes that compute,
one takes a minute to start.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
if "MPLCONFIGDIR" not in os.environ:
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="steadyflow-fonts-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)

import importlib.util
import re
import sys

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--missing",
        choices=["fail", "skip"],
        default="fail",
        help="what a test is that needs a package which is not installed (default: fail)",
    )


def missing(error):
    """What an exception says is not installed: a package, or an extra of ours; None if it says no such thing."""
    from steadyflow.errors import MissingExtraError

    while error is not None:
        if isinstance(error, MissingExtraError) or (isinstance(error, ModuleNotFoundError) and outside(error.name)):
            return str(error)
        if isinstance(error, AssertionError) and (
            told := re.search(r"[^'\"\n]* pip install 'steadyflow\[\w+\]'", str(error))
        ):
            return told[0].strip()  # by a command, which has printed it
        error = error.__cause__ or error.__context__
    return None


def outside(name):
    """Whether a module is neither ours nor a part of a package that is there."""
    top = (name or "steadyflow").partition(".")[0]
    return top not in ("steadyflow", "tests") and importlib.util.find_spec(top) is None


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(module_path, parent):
    """With --missing=skip, a file that imports a package which is not installed is skipped as a whole."""
    module = yield
    if module is not None and parent.config.getoption("missing") == "skip":
        get = module._getobj

        def imported():
            try:
                return get()
            except Exception as error:
                if said := missing(error):
                    pytest.skip(f"{module_path.name}: {said}", allow_module_level=True)
                raise

        module._getobj = imported
    return module


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With --missing=skip, a test that asks for what is not installed is skipped, in place of a failure."""
    report = yield
    if report.failed and item.config.getoption("missing") == "skip" and (said := missing(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {said}")
    return report


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: exit status, standard output, standard error."""
    from steadyflow import cli

    def invoke(*arguments):
        monkeypatch.setattr(sys, "argv", ["steadyflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return invoke


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, driven by Selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    quiet = ["background-networking", "component-update", "sync", "gpu", "quic"]
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    for argument in ["--headless=new", "--no-sandbox", "--no-first-run", profile, *(f"--disable-{q}" for q in quiet)]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()
