"""`steadyflow doctor`: what is broken is found, with its remedy, and what works is not called broken."""

import importlib.util
import json
import math

import pytest
import torch

from steadyflow.doctor import Finding, devices, folders, self_test, settings, versions
from steadyflow.doctor.versions import Requirement, is_supported, parse


def test_a_working_installation_passes_with_a_figure_and_a_bound_for_each_check(call, tmp_path, monkeypatch):
    for variable in ("HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path / "new"))
    status, text, _ = call("doctor", "--json")
    told = json.loads(text)
    assert (status, told["ok"]) == (0, True)
    findings = told["findings"]
    assert list(dict.fromkeys(one["topic"] for one in findings)) == [
        "versions", "devices", "folders", "settings", "self test",
    ]  # fmt: skip
    named = {one["name"]: one for one in findings}
    assert named["torch"]["figures"]["version"] == torch.__version__
    assert set(named) >= {"python", "steadyflow", "numpy", "data", "plots", "diffusers", "cpu", "temporary", "hub"}
    assert named["cpu arithmetic"]["figures"]["operations per second"]["float32"] > 0
    checks = [one["figures"] for one in findings if one["topic"] == "self test"]
    assert len(checks) >= 6
    assert all(check["value"] <= check["bound"] for check in checks)
    assert list(tmp_path.iterdir()) == []


def test_what_is_broken_is_printed_with_its_remedy_and_gives_status_1(call, monkeypatch):
    there = versions.installed
    monkeypatch.setattr(versions, "installed", lambda package: "0.9" if package == "jinja2" else there(package))
    monkeypatch.setattr(devices, "findings", lambda: iter(()))
    monkeypatch.setattr(self_test, "findings", lambda: iter(()))
    status, text, _ = call("doctor")
    assert status == 1
    lines = text.splitlines()
    [k] = [k for k, line in enumerate(lines) if line.startswith("  fail")]
    assert "jinja2 0.9 is not >=" in lines[k]
    assert lines[k + 1].strip() == "pip install 'steadyflow[plots]' --upgrade"
    assert lines[-1].startswith("broken: 1 of ")


def test_without_torch_it_still_says_what_is_wrong(call, monkeypatch):
    there = versions.installed
    monkeypatch.setattr(versions, "installed", lambda package: None if package == "torch" else there(package))
    status, text, _ = call("doctor", "--json")
    assert status == 1
    named = {one["name"]: one for one in json.loads(text)["findings"]}
    assert named["torch"]["status"] == "fail"
    assert named["torch"]["remedy"].startswith("pip install 'torch>=")
    assert named["all"]["says"] == "not run: it needs torch"


def test_a_fault_without_a_remedy_cannot_be_told():
    with pytest.raises(ValueError, match="remedy"):
        Finding("folders", "hub", "fail", "is full")


@pytest.mark.parametrize(
    ("version", "supported", "expected"),
    [
        ("2.13.0+cpu", ">=2.4", True), ("2.4", ">=2.4.0", True), ("2.10", ">=2.9", True), ("2.3.9", ">=2.4", False),
        ("1.5", ">=1.4,<2", True), ("2.0", ">=1.4,<2", False), ("1.4", ">1.4", False), ("1.4", "<=1.4", True),
        ("1.4.1", "==1.4.*", True), ("1.4.1", "==1.4", False), ("1.4", "!=1.4", False), ("1.5.2", "~=1.4", True),
        ("1.4.1", "!=1.4.*", False), ("1.5", "~=1.0", True), ("2.0", "~=1.4", False),
        ("3.0rc1", ">=3", True), ("1.0", "", True),
    ],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(version, supported, expected):
    assert is_supported(version, supported) == expected


def test_versions_are_compared_as_packaging_compares_them():
    packaging = pytest.importorskip("packaging.specifiers")
    numbers = [f"{a}.{b}" for a in range(3) for b in (0, 2, 10)] + ["1.2.3", "1.10.1"]
    for sign in (">=", "<=", ">", "<", "==", "!=", "~="):
        for bound in numbers:
            found = [is_supported(version, f"{sign}{bound}") for version in numbers]
            assert found == [packaging.SpecifierSet(f"{sign}{bound}").contains(version) for version in numbers], sign


def test_requirements_are_read_with_their_extras():
    lines = ["torch>=2.4", 'scipy<2,>=1.11; extra == "data"', "mkdocstrings[python]>=0.25 ; extra == 'docs'", "tqdm"]
    assert parse(lines) == [
        Requirement("torch", ">=2.4"),
        Requirement("scipy", "<2,>=1.11", "data"),
        Requirement("mkdocstrings", ">=0.25", "docs"),
        Requirement("tqdm", ""),
    ]


def test_every_package_of_an_extra_is_imported_by_the_name_of_its_module():
    wanted = [
        one for one in parse(versions.metadata.requires("steadyflow")) if one.extra not in versions.FOR_DEVELOPMENT
    ]
    assert len({one.extra for one in wanted}) >= 9
    missing = {one.package for one in wanted if versions.installed(one.package) is None}
    assert {one.package for one in wanted if importlib.util.find_spec(one.module) is None} <= missing


def test_a_damaged_package_is_found_when_all_are_imported(tmp_path, monkeypatch):
    (tmp_path / "damaged_package.py").write_text("raise OSError('libsomething.so.3 is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(versions, "installed", lambda package: "1.0")
    wanted = [Requirement("damaged-package", ">=1.0", "some")]
    assert versions._extra("some", wanted, imports=False).status == "pass"
    found = versions._extra("some", wanted, imports=True)
    assert found.status == "fail"
    assert "cannot be imported (OSError: libsomething.so.3 is not there)" in found.says
    assert versions._core(wanted[0]).status == "fail"


def test_an_extra_that_is_not_installed_is_no_fault_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda package: {"torch": "2.4"}.get(package))
    wanted = [Requirement("onnx", ">=1.16", "onnx"), Requirement("torch", ">=2.5", "onnx")]
    found = versions._extra("onnx", wanted, imports=True)
    assert (found.status, found.remedy) == ("note", "pip install 'steadyflow[onnx]'")
    monkeypatch.setattr(versions, "installed", {"torch": "2.4", "onnx": "1.18"}.get)
    found = versions._extra("onnx", wanted, imports=False)
    assert found.status == "fail"
    assert "torch 2.4 is not >=2.5" in found.says


def test_folders_that_cannot_be_written_to_are_faults_where_they_are_needed(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"a file")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    for offline, expected in (("0", "fail"), ("1", "note")):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        found = {one.name: one for one in folders.findings()}
        assert (found["hub"].status, found["temporary"].status) == (expected, "fail")
        assert "HF_HOME" in found["hub"].remedy
        assert "TMPDIR" in found["temporary"].remedy
        assert "is no folder" in found["hub"].says


def test_without_any_temporary_folder_the_examination_goes_on(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    found = {one.name: one for one in folders.findings()}
    assert found["temporary"].status == "fail"
    assert "No usable temporary directory" in found["temporary"].says


def test_the_cache_of_the_hub_is_where_the_hub_has_it(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    cases = [{}, {"XDG_CACHE_HOME": "/a"}, {"HF_HOME": "/b"}, {"HF_HUB_CACHE": "/c", "HF_HOME": "/b"}]
    try:
        for case in cases:
            with monkeypatch.context() as patch:
                for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
                    patch.delenv(name, raising=False)
                for name, value in case.items():
                    patch.setenv(name, value)
                importlib.reload(constants)
                assert str(folders.hub()) == constants.HF_HUB_CACHE
    finally:
        importlib.reload(constants)


def test_a_damaged_file_among_the_users_tuned_solvers_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("STEADYFLOW_SOLVERS", str(tmp_path))
    assert {one.name: one.status for one in folders.findings()}["tuned solvers"] == "pass"
    (tmp_path / "mine.json").write_text("{")
    found = {one.name: one for one in folders.findings()}["tuned solvers"]
    assert found.status == "fail"
    assert "mine.json" in found.says


@pytest.mark.parametrize(
    ("value", "offline", "status"),
    [
        (None, False, "pass"),
        ("1", True, "pass"),
        ("true", True, "pass"),
        ("0", False, "pass"),
        ("maybe", False, "note"),
    ],
)
def test_offline_is_told_as_the_hub_understands_it(value, offline, status, monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    if value is None:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
    found = next(settings.findings())
    assert (found.figures["offline"], found.status) == (offline, status)


def test_precisions_are_compared_with_float32():
    measured = {"float32": 100e9, "float64": 40e9, "bfloat16": 190e9, "float16": 2e9}
    found = devices._arithmetic("cpu", torch.device("cpu"), measured)
    assert found.says == ("float32 100 GFLOP/s, float64 0.4 times as fast, bfloat16 1.9 times as fast, "
                          "float16 0.02 times as fast (slow)")  # fmt: skip
    assert (found.status, found.remedy) == ("note", "work in float32 here: float16 would save memory and no time")
    assert devices._arithmetic("cpu", torch.device("cpu"), {**measured, "float16": None}).status == "pass"
    assert devices._arithmetic("cpu", torch.device("cpu"), {**measured, "float32": None}).status == "fail"


def test_speeds_are_operations_by_the_time_of_the_fastest():
    ticks = iter([0.0, 9.0, 10.0, 14.0, 20.0, 22.0, 30.0, 33.0] * 4)  # 9 s to make ready, then 4, 2 and 3 s
    found = devices.speeds(torch.device("cpu"), lambda: next(ticks))
    assert found["float32"] == 2 * 256**3 / 2.0


def test_a_gpu_that_torch_does_not_see_is_explained():
    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old")

    assert devices._no_cuda(False, None, fail).status == "note"
    assert devices._no_cuda(True, None, fail).status == "note"
    found = devices._no_cuda(True, "12.8", fail)
    assert found.status == "fail"
    assert "too old" in found.says
    assert "CUDA 12.8" in found.remedy


def test_the_self_test_finds_what_is_wrong(monkeypatch):
    by_name = {check.name: check for check in self_test.checks()}
    assert self_test.slope("ddim", 2) > by_name["order of ees25"].bound
    plain = self_test.reconstruct
    monkeypatch.setattr(self_test, "reconstruct", lambda model, x, **options: plain(model, x, steps=8, solver="ddim"))
    assert self_test.round_trip() > by_name["round trip"].bound
    assert by_name["bundled model"].finding().status == "fail"
    monkeypatch.setattr(self_test, "sample", lambda model, n, index=0, **_: type("S", (), {"x": torch.rand(n, 2)})())
    assert by_name["addressed noise"].finding().status == "fail"


@pytest.mark.parametrize("value", [2.0, math.nan, math.inf])
def test_a_figure_beyond_its_bound_fails(value):
    check = self_test.Check("some", "a figure", 1.0, lambda: value)
    assert check.finding().status == "fail"
    assert "at most 1e+00 accepted" in check.finding().says


def test_a_check_that_raises_fails():
    found = self_test.Check("some", "a figure", 1.0, lambda: 1 / 0).finding()
    assert (found.status, found.says) == ("fail", "raised ZeroDivisionError: division by zero")
    assert found.remedy
