"""The demonstration: its figures are what they are called, its sentences hold, and it takes a picture of the user's."""

import dataclasses
import json
import re

import pytest
import torch

import steadyflow as sf
from steadyflow.datasets import arrays, digits
from steadyflow_lab import demo, report
from steadyflow_lab.editing.ways import TUNED


@pytest.fixture(scope="module")
def subject():
    images, labels = (part[:4] for part in digits("held-out"))
    return demo.Subject(sf.load("digits"), images, labels, (labels + 5) % 10, ["another digit"] * 4)


@pytest.fixture(scope="module")
def found(subject):
    return demo.study(subject, nfe=24, guidances=(1.0, 7.5))


def test_every_solver_has_its_evaluations_and_its_figures(found, subject):
    assert [row.solver for row in found.rows] == list(demo.compared(subject.model))
    assert {row.nfe for row in found.rows} == {24}
    for row in found.rows:
        shown = found.shown[row.solver]
        assert row.back == pytest.approx(rms(shown.back - subject.x.clamp(-1, 1)))
        for w, edit in row.edit.items():
            assert edit == pytest.approx(rms(shown.edits[w] - found.fine.edits[w]))
        assert not row.done
        assert not row.background


def rms(difference):
    return (difference / 2).square().flatten(1).mean(1).sqrt().median().item()


def test_the_fine_solve_is_a_reference_for_the_others(found):
    """Its own error is small against theirs: halving its step changes its edits by less than a tenth of RK4's error."""
    finer = demo.study(found.subject, nfe=48, guidances=(1.0,), explain=False).fine
    error = rms(finer.edits[1.0] - found.fine.edits[1.0])
    assert error < 0.1 * next(row for row in found.rows if row.solver == "rk4").edit[1.0]


def test_the_diagnosis_is_of_ddim_and_its_remedy_was_tried(found):
    assert found.diagnosis.setting.solver.name == "ddim"
    assert found.diagnosis.verified.gain > 1
    assert len(found.diagnosis.measured) == demo.DIAGNOSED


def changed(found, **errors):
    """The study with other figures: back and strong edit by the first word of the solver's name."""
    rows = []
    for row in found.rows:
        back, edit = errors.get(row.solver.partition(",")[0] if "auto" not in row.solver else "auto", (0.1, 0.1))
        rows.append(dataclasses.replace(row, back=back, edit={1.0: 0.01, 7.5: edit}))
    return dataclasses.replace(found, rows=rows)


def test_it_says_only_what_its_figures_show(found):
    shown = changed(found, ddim=(0.05, 0.1), ees25=(1e-3, 0.05), rex=(1e-7, 0.4))
    assert demo.title(shown) == "Exact is not the same as stable"
    assert demo.sentence(shown) == (
        "The exactly reversible solver brings the pictures back to rounding (1e-07), and its edit at guidance 7.5 is "
        "off by 40.0% of the range. DDIM does not bring them back (5.0%). The near-reversible one brings them back "
        "(0.1%), and its edit is within 5.0% of a fine solve."
    )
    diverged = changed(found, ddim=(0.05, 0.1), ees25=(1e-3, 0.05), rex=(1e-7, demo.DIVERGED))
    assert "its edit at guidance 7.5 diverges" in demo.sentence(diverged)
    tame = changed(found, ddim=(1e-3, 0.05), ees25=(1e-3, 0.05), rex=(1e-7, 0.05))
    assert demo.title(tame) == "The same edit with solvers side by side"
    assert demo.sentence(tame) == "Here no solver is far ahead of the others; the figures are below."


def test_a_solver_that_diverges_has_a_line_that_says_so(found):
    rows = [dataclasses.replace(found.rows[0], edit={1.0: 0.01, 7.5: demo.DIVERGED}, largest=demo.DIVERGED)]
    _, cells = demo.table(dataclasses.replace(found, rows=rows))
    assert cells[0][4] == "diverged"
    assert demo.picture(found.subject.model, torch.full((1, 1, 8, 8), torch.nan)).isfinite().all()


def test_the_report_opens_with_the_sentence_and_the_picture_and_fetches_nothing(found, tmp_path):
    page = report.write(found, tmp_path / "report.html").read_text(encoding="utf-8")
    body = page[page.index("<h1>") :]
    assert body.index(demo.sentence(found).split(" (")[0]) < body.index("<img") < body.index("<h2>Figures")
    assert page.count("<img") == page.count('src="data:image/png;base64,') == page.count('alt="')
    assert page.count("<img") == 1 + (1 + len(found.rows)) * 3 + 1 + len(found.rows) * 4
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "three.png"
    arrays.write(path, digits("held-out")[0][:1])
    return path


def test_a_picture_of_the_users_in_a_model_of_theirs(call, mine, tmp_path):
    words = ["--model", "digits", "--image", mine, "--source", 3, "--target", 8]
    status, out, _ = call("demo", *words, "--out", tmp_path / "demo", "--guidance", 2, "--guidance", 5, "--nfe", 12)
    assert status == 0
    assert re.search(r"^solver +nfe +round trip +edit 2 +edit 5 +max", out, re.M)
    assert "Why DDIM does not return the picture" in out
    assert (tmp_path / "demo" / "report.html").is_file()
    status, out, _ = call("demo", *words, "--out", tmp_path / "demo", "--no-diagnosis", "--json", "--nfe", 12)
    assert [row["solver"] for row in json.loads(out)["solvers"]] == list(demo.compared(sf.load("digits")))
    assert "diagnosis" not in json.loads(out)


def test_the_bundled_scenes_are_judged(call, tmp_path):
    pytest.importorskip("diffusers")
    words = ["--n", 1, "--nfe", 6, "--guidance", 2.5, "--no-diagnosis", "--json"]
    out = call("demo", *words, "--out", tmp_path / "demo")[1]
    rows = json.loads(out)["solvers"]
    assert len(rows) == 5 + TUNED.is_file()
    assert all(row["done"].keys() == row["background"].keys() == {"2.5"} for row in rows)
    assert all(0.0 < value < 1.0 for row in rows for value in row["background"].values())


def test_a_tuned_solver_is_compared_for_each_of_its_numbers_of_calls(subject, tmp_path):
    images, labels = (part[:24] for part in digits("held-out"))
    words = {"nfe": 4, "x": images, "conditions": labels.tolist(), "n": 8, "judge": 8, "calls": 800, "progress": False}
    sf.tune(subject.model, task="round trip", **words).save(tmp_path / "tuned.json")
    sf.tune(subject.model, nfe=4, n=8, judge=8, fine=20, calls=200, against=["ddim"], progress=False).save(
        tmp_path / "sampler.json"
    )
    names = demo.compared(subject.model, tuned=str(tmp_path / "tuned.json"))
    assert list(names)[-1] == "tuned for 4 calls"
    with pytest.raises(sf.errors.InputError, match="tuned: got 'ddim', expected the file of a tuned solver"):
        demo.compared(subject.model, tuned="ddim")
    with pytest.raises(sf.errors.InputError, match="was fitted to sampling"):
        demo.compared(subject.model, tuned=str(tmp_path / "sampler.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "digits"], "model: goes with --image"),
        (["--target", "8"], "target: goes with --image"),
        (["--model", "digits", "--image", "MINE"], "target: say what the picture is to become"),
        (["--model", "digits", "--image", "MINE", "--target", "8", "--n", "3"], "n: the picture is one"),
        (["--model", "digits", "--image", "MINE", "--target", "eight"], "target: got 'eight'"),
        (
            ["--model", "digits", "--image", "MINE", "--target", "8", "--nfe", "3"],
            "nfe: got 3, but one step of 'rk4' takes 4",
        ),
        (
            ["--model", "mixture", "--image", "MINE", "--target", "8"],
            "the model's samples have shape (2,) and are no pictures",
        ),
        (["--device", "cuda"], "device: the bundled pipeline runs on the CPU"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(call, mine, tmp_path, words, message):
    words = [str(mine) if word == "MINE" else word for word in words]
    status, _, err = call("demo", *words, "--out", tmp_path / "demo")
    assert status == 1
    assert message in err
    assert not (tmp_path / "demo").exists()
