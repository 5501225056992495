"""JSON that every reader takes: what is not finite is null for people, and is read back from our own files."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import steadyflow as sf
from steadyflow._internal import strict_json
from steadyflow.diagnostics import contractivity_report

ROOT = Path(__file__).parents[1]
VALUES = {"a": [1.5, math.inf, (-math.inf, 2)], "b": {"c": math.nan, "d": None}, "e": "NaN", 7: True, math.inf: 0}


def strictly(text):
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_what_is_written_is_strict_and_read_back():
    text = strict_json.dumps(VALUES)
    strictly(text)
    found = strict_json.loads(text)
    assert found["a"] == [1.5, math.inf, [-math.inf, 2]]
    assert math.isnan(found["b"]["c"])
    assert found["e"] == "NaN"
    shown = strictly(strict_json.dumps(strict_json.plain(VALUES)))
    assert shown == {"a": [1.5, None, [None, 2]], "b": {"c": None, "d": None}, "e": "NaN", "7": True, "inf": 0}


@pytest.mark.parametrize("text", ["NaN", '{"a": [Infinity]}', "-Infinity", "1e999", "[1e400]"])
def test_what_is_no_json_is_not_read(text):
    with pytest.raises(ValueError, match=r"no number of JSON|too large a number"):
        strict_json.loads(text)


def test_nothing_writes_or_reads_json_in_another_way():
    elsewhere = {
        "src/steadyflow/_internal/strict_json.py": "this is the way",
        "src/steadyflow/loading.py": "reads what a user writes for a pipeline's call",
    }
    found = []
    for folder in ("src", "lab/src"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if (
                name not in elsewhere
                and "/runs/" not in name
                and re.search(r"(?<!_)\bjson\.(dump|load)", path.read_text())
            ):
                found.append(name)
    assert found == []


def test_figures_of_a_run_that_diverges_are_json():
    model = sf.Denoiser(lambda x, t: x * 1e3, sf.VPCosine(), shape=(2,), dtype=torch.float32)
    figures = sf.diagnose(model, torch.ones(2, 2), solver="rex-euler", steps=40).figures()
    assert "null" in json.dumps(figures, allow_nan=False)
    flat = sf.Denoiser(lambda x, t: x, sf.VPCosine(), shape=(2,), dtype=torch.float32)
    found = contractivity_report.study(flat, torch.ones(2, 2), solver="euler", steps=2)
    found.found.lipschitz[:] = math.inf
    assert strictly(json.dumps(found.figures(), allow_nan=False))[0]["largest"] is None


def test_saved_files_with_numbers_that_are_not_json_are_refused(tmp_path):
    path = tmp_path / "factors.json"
    sf.corrections.Calibrated((0.5, 1.0), (1.0, 1.0)).save(path)
    path.write_text(path.read_text().replace("0.5", "NaN"))
    with pytest.raises(sf.CorruptFileError, match="NaN is no number of JSON"):
        sf.corrections.Calibrated.load(path)
