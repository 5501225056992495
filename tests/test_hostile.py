"""Hostile files: refused with a reason, without taking memory, and nothing outside their place is touched."""

import base64
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import steadyflow as sf
from steadyflow import runs, solvers
from steadyflow._internal import files, html, sounds, videos
from steadyflow.corrections import Calibrated
from steadyflow.datasets import arrays
from steadyflow.diagnostics import report
from steadyflow_lab.editing import piebench

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import contextlib

import fuzz

SHAPE = (1, 8, 8)


def npy(shape, dtype="<f4"):
    """A .npy header that declares a shape, and four bytes."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0\0\0\0"


def safetensors(shape, metadata=None, end=4):
    head = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}, "__metadata__": metadata or {}}
    data = json.dumps(head).encode()
    return struct.pack("<Q", len(data)) + data + b"\0\0\0\0"


def png(width, height):
    """A PNG that declares a size, of one compressed row of zeros."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def model(network, tensors=None):
    about = {
        "network": network,
        "schedule": sf.VPCosine().spec(),
        "prediction": "epsilon",
        "shape": [2],
        "null": None,
        "classes": None,
        "time_scale": 1.0,
        "name": "bomb",
    }
    return {"model": json.dumps(about), "format": "steadyflow", "version": "1", "kind": "model"}


ARRAYS = {
    "a huge shape.npy": npy((10**9, *SHAPE)),
    "an overflowing shape.npy": npy((2**62, *SHAPE)),
    "a negative shape.npy": npy((-1, *SHAPE)),
    "objects.npy": npy((1, *SHAPE), "|O"),
    "code in the header.npy": b"\x93NUMPY\x01\x00v\x00" + b"__import__('os').system('touch owned')".ljust(117) + b"\n",
    "a huge shape.safetensors": safetensors([10**12, *SHAPE]),
    "offsets beyond the end.safetensors": safetensors([1, *SHAPE], end=2**40),
    "NaN in the header.safetensors": struct.pack("<Q", 40) + b'{"x": {"dtype": "F32", "shape": [NaN]}}  ',
    "a header of 2^60 bytes.safetensors": struct.pack("<Q", 2**60) + b"{}",
    "a deep header.safetensors": struct.pack("<Q", 40000) + b'{"x":' * 8000,
    "a bomb.png": png(60000, 60000),
    "a bomb of a width.png": png(2**31 - 1, 1),
    "a picture cut short.png": png(8, 8)[:45],
    "a program.png": b"%!PS\n(owned) print",
    "zeros.npy": b"\0" * 100,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_hostile_arrays_and_pictures_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ARRAYS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(sf.SteadyflowError, match=r"\.npy|\.safetensors|\.png"):
            arrays.read(path, SHAPE)
    assert [p.name for p in tmp_path.iterdir()] == [name]


MODELS = {
    "wide": {"type": "ResidualMLP", "shape": [2], "hidden": 99_999},
    "wider than allowed": {"type": "ResidualMLP", "shape": [2], "hidden": 10**9},
    "deep": {"type": "ResidualMLP", "shape": [2], "blocks": 10**5},
    "of many classes": {"type": "ResidualMLP", "shape": [2], "classes": 10**5},
    "of a huge shape": {"type": "UNet", "shape": [3, 10**5, 10**5], "channels": [99992] * 8},
    "of another type": {"type": "Popen", "args": ["touch", "owned"]},
    "of no type": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_model_files_that_ask_for_huge_networks_are_refused(tmp_path, name):
    save_file({"a": torch.zeros(1)}, tmp_path / "bomb.safetensors", model(MODELS[name]))
    with pytest.raises(sf.CorruptFileError, match="not a model of this version"):
        sf.load(str(tmp_path / "bomb.safetensors"))


def test_nothing_hostile_takes_memory(tmp_path):
    """All of the above again, in a process that may take 300 MB beyond what it has after importing."""
    for name, data in ARRAYS.items():
        (tmp_path / name).write_bytes(data)
    for name, network in MODELS.items():
        save_file({"a": torch.zeros(1)}, tmp_path / f"model {name}.safetensors", model(network))
    code = f"""
import resource, warnings
from pathlib import Path
import steadyflow as sf
from steadyflow.datasets import arrays
warnings.simplefilter("ignore")
sf.load("mixture25"); import PIL.Image, PIL.PngImagePlugin
size = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (size + 300_000_000,) * 2)
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        sf.load(str(path)) if path.name.startswith("model") else arrays.read(path, {SHAPE})
    except sf.SteadyflowError as error:
        print(path.name)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads its size from /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == sorted(p.name for p in tmp_path.iterdir()), done.stderr


def test_saved_states_cannot_be_deep_enough_to_overflow_the_stack(tmp_path):
    from steadyflow.solvers.state import deserialize_state

    with pytest.raises(sf.CorruptFileError):
        deserialize_state({}, '{"tuple": "tuple", "items": [' * 100_000)


def test_piebench_does_not_leave_its_folder(tmp_path):
    entry = {"image_path": "../../etc/passwd", "original_prompt": "a", "editing_prompt": "b", "editing_type_id": "0"}
    (tmp_path / "annotation_images").mkdir()
    (tmp_path / "mapping_file.json").write_text(json.dumps({"0": {**entry, "mask": []}}))
    with pytest.raises(sf.CorruptFileError, match="leads out of"):
        piebench.items(tmp_path)


def test_reports_escape_what_users_give(tmp_path):
    words = "<script>alert(1)</script>\" onload='x"
    page = html.write(tmp_path / "r.html", '<p title="{{ a }}">{{ a }}</p>', a=words).read_text()
    assert "<script>" not in page
    assert "onload='" not in page


def test_the_report_of_a_diagnosis_escapes_the_name_of_a_model(tmp_path):
    import dataclasses

    mixture = sf.GaussianMixture.grid(2).denoiser(sf.VPCosine())
    named = dataclasses.replace(
        sf.Denoiser(lambda x, t: mixture(x, float(t[0])).eps, sf.VPCosine(), shape=(2,)), name="<img src=x onerror=1>"
    )
    found = sf.diagnose(named, mixture.mixture.sample(3), solver="ddim", steps=4)
    assert "<img src=x" not in report.write(found, tmp_path / "d.html").read_text()


def test_pictures_in_reports_are_ours(tmp_path):
    data = base64.b64decode(html.strip(torch.zeros(2, 1, 8, 8)))
    assert Image.open(io.BytesIO(data)).format == "PNG"


@pytest.fixture(scope="module")
def fuzzed():
    fuzz.WORK.mkdir(exist_ok=True)
    return fuzz.parsers()


@pytest.mark.parametrize("target", [name for name in fuzz.TARGETS if name != "functions"])
def test_parsers_answer_changed_files_with_results_or_errors_of_ours(fuzzed, target):
    """A little of `scripts/fuzz.py`, the same every time."""
    rng, (read, seeds) = random.Random(target), fuzzed[target]
    for _ in range(60 if target in ("model", "index") else 300):
        data = bytes([rng.randrange(64, 256)]) + rng.randbytes(rng.randrange(3, 60))
        with contextlib.suppress(fuzz.OURS):
            read(fuzz.mutated(data, rng.choice(seeds)))


def test_public_functions_answer_any_arguments_with_results_or_errors_of_ours():
    assert fuzz.fuzz_functions(240, examples=50, rounds=1) > 250


def test_corrupt_numbers_in_arrays_are_told_not_computed_with(tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, *SHAPE), np.nan, np.float32))
    job = runs.Inverting("digits", n=2, solver=runs.spec_of("ddim"), label=1, input=str(tmp_path / "x.npy"))
    with pytest.raises(sf.InputError, match="NaN or infinity in sample"):
        runs.run_job(job, tmp_path / "run")


READERS = {
    "x.npy": lambda path: arrays.read(path, SHAPE),
    "x.safetensors": lambda path: arrays.read(path, SHAPE),
    "x.png": lambda path: arrays.read(path, SHAPE),
    "mask.png": arrays.open_picture,
    "x.wav": lambda path: sounds.read(path, (1, 8), 8000),
    "x.mp4": lambda path: videos.read(path, (3, 2, 8, 8)),
    "inversion.safetensors": sf.Inversion.load,
    "solution.safetensors": sf.Solution.load,
    "model.safetensors": sf.load,
    "tuned.json": solvers.get,
    "calibrated.json": Calibrated.load,
    "model.onnx": sf.interop.from_onnx,
    "prompts.txt": lambda path: files.read_text(path, 10**6),
    "mapping_file.json": lambda path: piebench.items(path.parent),
    "manifest.json": lambda path: runs.RunFolder.open(path.parent),
}
"""Everything that reads a file."""


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_files_without_end_folders_and_noise_in_bounded_memory(name, tmp_path):
    """A link to /dev/zero has no end and says it is empty; a pipe that nobody writes to would be waited for."""
    path = tmp_path / name
    if Path("/dev/zero").exists():
        path.symlink_to("/dev/zero")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises((sf.SteadyflowError, FileNotFoundError)):
            READERS[name](path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes
        path.unlink()
    path.mkdir()
    with pytest.raises((sf.SteadyflowError, FileNotFoundError)):
        READERS[name](path)
    path.rmdir()
    for content in (b"", b"\0" * 100, b"\xff\xfe{", b"[" * 100_000, b"NaN"):
        path.write_bytes(content)
        if name == "prompts.txt" and content[:1] != b"\xff":
            continue
        with pytest.raises((sf.SteadyflowError, FileNotFoundError)):
            READERS[name](path)


def test_texts_are_read_from_pipes_and_to_a_bound(tmp_path):
    ends = os.pipe()
    os.write(ends[1], "é\n".encode())
    os.close(ends[1])
    assert files.read_text(f"/dev/fd/{ends[0]}") == "é\n"
    os.close(ends[0])
    (tmp_path / "x").write_text("12345")
    assert files.read_text(tmp_path / "x", 5) == "12345"
    with pytest.raises(sf.CorruptFileError, match="more than 4 bytes"):
        files.read_text(tmp_path / "x", 4)
