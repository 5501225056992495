"""Feed every parser and every public function nonsense:  python scripts/fuzz.py [--seconds 600] [--target NAME]

Parsers (of runs, inversions, models, shards, manifests, indices, arrays, pictures, saved states, specs, results and
benchmarks) get bytes that atheris makes up, guided by coverage where it can be: half of the time a valid file whose
text or bytes were changed. Public functions get arguments that hypothesis makes up. Nothing may come out but a result
or an error of ours, nothing may allocate more than 2 GB, and nothing may take longer than 20 seconds. The time is
divided among the targets; one line each, and the exit status says whether all went well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save


def _instrumented() -> Any:
    """What lets atheris see the coverage of our modules, where a parser is its target."""
    if "--target" not in sys.argv or "functions" in sys.argv:
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=["steadyflow", "steadyflow_lab"])


with _instrumented():
    import steadyflow as sf
    from steadyflow import runs, schedules
    from steadyflow.datasets import arrays
    from steadyflow.runs import folder as run_folder
    from steadyflow.solvers import registry
    from steadyflow.solvers.state import deserialize_state
    from steadyflow_lab.cached_results import cached_results
    from steadyflow_lab.editing import piebench
    from steadyflow_lab.models import WEIGHTS

OURS = (sf.SteadyflowError, FileNotFoundError)
MEMORY = 2 * 2**30
WORK = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}"


def _valid() -> dict[str, Callable[[Path], Any]]:
    """Writers of a valid file each, from which others are made."""
    model = sf.GaussianMixture.grid(2, dtype=torch.float32).denoiser(sf.VPCosine())
    x = model.mixture.sample(3)

    def run(path):
        sf.integrate(model, x, sf.grids.make("uniform", model.schedule, 3), sf.solvers.get("dpmpp-2m")).save(path)

    def inversion(path):
        sf.invert(model, x, solver="rex-midpoint", steps=2).save(path)

    def bundled(path):
        path.write_bytes((WEIGHTS / "mixture25.safetensors").read_bytes())

    def shard(path):
        job = runs.Sampling("mixture", n=4, solver=runs.spec_of("ddim"), steps=1, block=4)
        done = runs.run_job(job, WORK / "valid-run")
        path.write_bytes((done.path / "shards" / done.shards()[0].file).read_bytes())

    return {"run": run, "inversion": inversion, "model": bundled, "shard": shard}


def _opened(data: bytes, name: str, read: Callable[[Path], Any]) -> None:
    """Read a file with these bytes."""
    path = WORK / name
    path.write_bytes(data)
    read(path)


def _index(path: Path) -> None:
    folder = WORK / "indexed"
    if not folder.exists():
        job = runs.Sampling("mixture", n=4, solver=runs.spec_of("ddim"), steps=1, block=2)
        runs.run_job(job, folder)
    (folder / "index.sqlite").write_bytes(path.read_bytes())
    list(runs.RunFolder.open(folder).parts())


def _manifest(path: Path) -> None:
    folder = WORK / "manifested"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(path.read_bytes())
    runs.RunFolder.open(folder).shards()


def _cells(path: Path) -> None:
    folder = WORK / "cells"
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_bytes(path.read_bytes())
    made = runs.Shard(0, 1, "", 0.0, "")
    read = cached_results(runs.InProcess(), lambda k: made, [("a", 0)], folder, {}, lambda fields: runs.Shard(**fields))
    list(read)


def _mapping(path: Path) -> None:
    (WORK / "annotation_images").mkdir(exist_ok=True)
    (WORK / "mapping_file.json").write_bytes(path.read_bytes())
    piebench.items(WORK)


def _text(parse: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    """A parser of what JSON gives."""

    def read(data: bytes) -> Any:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return parse(found) if isinstance(found, dict) else None

    return read


def _state(data: bytes) -> Any:
    return deserialize_state({"state": torch.zeros(2), "state.0": torch.zeros(2)}, data.decode("utf-8", "replace"))


def parsers() -> dict[str, tuple[Callable[[bytes], Any], list[bytes]]]:
    """For each target, what reads bytes, and some valid ones."""
    seeds: dict[str, bytes] = {}
    for name, write in _valid().items():
        write(WORK / "valid.safetensors")
        seeds[name] = (WORK / "valid.safetensors").read_bytes()
    array, picture = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros((3, 1, 8, 8), np.float32))
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture, format="PNG")
    connection = sqlite3.connect(WORK / "valid.sqlite")
    connection.execute("create table if not exists shards (start, stop, digest, seconds, worker)")
    connection.execute("insert into shards values (0, 2, 'aa', 1.0, 'x')")
    connection.commit()
    connection.close()
    job = runs.Inverting("digits", n=3, solver=runs.spec_of("rex-rk4"))
    manifest = {"format": "steadyflow run", "job": job.spec(), "versions": {}, "model": "", "input": ""}
    mapping = {"0": {"image_path": "a.png", "original_prompt": "a [cat]", "editing_prompt": "b", "mask": [0, 3]}}
    mapping["0"]["editing_type_id"] = "0"
    shape = (1, 8, 8)
    tensor = save({"x": torch.zeros(2, *shape)})
    schedule, solver = sf.Tabulated.linear(4).spec(), sf.solvers.get("hybrid").spec()

    def file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        return lambda data: _opened(data, name, read)

    return {
        "run": (file("f.safetensors", sf.Solution.load), [seeds["run"]]),
        "inversion": (file("f.safetensors", sf.Inversion.load), [seeds["inversion"]]),
        "model": (file("f.safetensors", lambda path: sf.load(str(path))), [seeds["model"]]),
        "shard": (file("f.safetensors", run_folder.load_shard), [seeds["shard"]]),
        "manifest": (file("f.json", _manifest), [json.dumps(manifest).encode()]),
        "index": (file("f.sqlite", _index), [(WORK / "valid.sqlite").read_bytes()]),
        "npy": (file("f.npy", lambda path: arrays.read(path, shape)), [array.getvalue()]),
        "safetensors": (file("f.safetensors", lambda path: arrays.read(path, shape)), [tensor]),
        "png": (file("f.png", lambda path: arrays.read(path, shape, resize=True)), [picture.getvalue()]),
        "state": (_state, [b'{"tuple": "History", "items": [{"tensor": "state.0"}, {"float": "0x1p0"}]}']),
        "schedule": (_text(schedules.from_spec), [json.dumps(schedule).encode()]),
        "solver": (_text(registry.from_spec), [json.dumps(solver).encode(), b'{"name": "ees27", "x": 0.1}']),
        "cells": (file("f.json", _cells), [b'{"stamp": {}, "result": {"start": 0, "stop": 1, "digest": ""}}']),
        "piebench": (file("f.json", _mapping), [json.dumps(mapping).encode()]),
    }


def mutated(data: bytes, seed: bytes) -> bytes:
    """The seed with a few pieces replaced by what the data says; or the data itself."""
    if len(data) < 4 or data[0] < 64:
        return data[1:]
    if data[0] & 8 and seed[8:9] == b"{":
        return retold(data, seed)
    result = bytearray(seed)
    at = 1
    while at + 4 <= len(data) and result:
        place = int.from_bytes(data[at : at + 3], "little") % min(len(result), 2**24)
        if data[0] & 1:
            place %= min(len(result), 4096)  # headers are at the beginning
        count = data[at + 3] % 16
        piece = data[at + 4 : at + 4 + count]
        result[place : place + (len(piece) if data[0] & 2 else data[at + 3] // 16)] = piece
        at += 4 + count
    if data[0] & 4:
        result = result[: int.from_bytes(data[1:3], "little") % (len(result) + 1)]
    return bytes(result)


def retold(data: bytes, seed: bytes) -> bytes:
    """A safetensors file whose header is valid JSON still, with one of its texts changed."""
    length = int.from_bytes(seed[:8], "little")
    header = json.loads(seed[8 : 8 + length])
    texts = header.get("__metadata__") or {}
    if texts:
        name = sorted(texts)[data[1] % len(texts)]
        text = bytearray(texts[name].encode())
        at = int.from_bytes(data[2:4], "little") % (len(text) + 1)
        text[at : at + data[0] // 16] = data[4:24]
        texts[name] = text.decode("utf-8", "replace")
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + seed[8 + length :]


def fuzz_parser(name: str, seconds: int) -> None:
    """Let atheris feed a parser; ends the process with another status than 0 where something else than ours came."""
    import atheris

    read, seeds = parsers()[name]
    corpus = WORK / "corpus"
    corpus.mkdir()
    for k, seed in enumerate(seeds):
        (corpus / str(k)).write_bytes(b"\0" + seed)
        (corpus / f"{k}-changed").write_bytes(b"\xff" + bytes(32))

    def one(data: bytes) -> None:
        begin = time.monotonic()
        with contextlib.suppress(OURS):
            read(mutated(data, seeds[len(data) % len(seeds)]))
        if time.monotonic() - begin > 20.0:
            raise RuntimeError("took longer than 20 seconds")

    options = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-max_len=65536", "-timeout=30", "-verbosity=0"]
    options += ["-print_final_stats=1", f"-artifact_prefix={WORK}/", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def fuzz_functions(seconds: int, examples: int = 200, rounds: float = math.inf) -> int:
    """Let hypothesis call public functions, in rounds of examples of each, or until the time is up; the calls."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    numbers = st.one_of(
        st.floats(allow_nan=True, allow_infinity=True),
        st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.nan, 7.5]),
        st.integers(-3, 6),
    )
    steps = st.one_of(st.integers(-2, 5), st.just(0))
    names = st.one_of(st.sampled_from([*registry.names(), "auto"]), st.text(max_size=4))
    grids = st.one_of(st.sampled_from(["uniform", "quadratic", "log-snr", "karras"]), st.text(max_size=3))
    times = st.one_of(st.none(), st.floats(-0.5, 1.5), st.just(math.nan))

    @st.composite
    def tensors(draw):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        kind = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool]))
        shape = draw(st.sampled_from([shape, [3, 2], [1, 2], [2, 2]]))
        fill = draw(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, 0.1, 1e30])))
        return torch.full(shape, fill if kind.is_floating_point else 1, dtype=torch.float64).to(kind)

    paths = [sf.VPLinear(), sf.VPCosine(), sf.VE(), sf.RectifiedFlow(), sf.Tabulated.scaled_linear()]
    labelled = sf.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0.2, labels=torch.tensor([0, 1]))
    models = [labelled.denoiser(path) for path in paths]
    model = st.sampled_from(models)
    label = st.one_of(st.none(), st.integers(-1, 3), tensors())
    shared = {"solver": names, "steps": steps, "grid": grids, "t_max": times, "t_min": times}
    seeds = st.integers(-(2**70), 2**70)
    corrections = st.sampled_from(
        [(), (sf.corrections.Escape(),), (sf.corrections.Stein(),), (sf.corrections.Restart(),)]
    )

    def some(required: dict[str, Any], optional: dict[str, Any]) -> Any:
        return st.fixed_dictionaries(required, optional=optional)

    records = st.sampled_from(["all", "last", None, 2, 0, -1, "some"])
    calls: dict[str, tuple[Callable[..., Any], Any]] = {
        "sample": (
            lambda m, **o: sf.sample(m, progress=False, **o),
            some(
                {"m": model},
                {
                    **shared,
                    "n": st.integers(-1, 4),
                    "x": tensors(),
                    "seed": seeds,
                    "index": seeds,
                    "batch_size": st.integers(-1, 3),
                    "record": records,
                    "corrections": corrections,
                    "noise": st.sampled_from(["white", "brownian", "pink"]),
                    "end": st.sampled_from(["clean", "path", "tail"]),
                },
            ),
        ),
        "invert": (
            lambda m, c, w, **o: sf.invert(m.with_condition(c).with_guidance(w), progress=False, **o).decode(
                guidance=w
            ),
            some(
                {"m": model, "x": tensors(), "c": label, "w": numbers},
                {**shared, "nfe": steps, "strength": numbers},
            ),
        ),
        "reconstruct": (
            lambda m, x, **o: sf.reconstruct(m, x, progress=False, **o),
            some({"m": model, "x": tensors()}, shared),
        ),
        "edit": (
            lambda m, x, target, **o: sf.edit(m, x, target, progress=False, **o),
            some(
                {"m": model, "x": tensors(), "target": label},
                {
                    **shared,
                    "source": label,
                    "method": st.sampled_from([*sf.editing.names(), "magic"]),
                    "guidance": numbers,
                    "smoothing": numbers,
                    "mask": tensors(),
                    "smooth": st.sampled_from(["both", "inversion", "x"]),
                },
            ),
        ),
        "flow edit": (
            lambda m, x, target, average, **o: sf.edit(
                m, x, target, method=sf.editing.FlowEdit(average=average), progress=False, **o
            ),
            some(
                {"m": model, "x": tensors(), "target": label, "average": st.integers(-1, 2)},
                {"steps": steps, "strength": numbers, "guidance": numbers},
            ),
        ),
        "noise maps": (
            lambda m, x, **o: sf.editing.noise_maps(m, x, **o),
            some({"m": model, "x": tensors()}, {"steps": steps}),
        ),
        "adaptive": (
            lambda m, x, rtol, atol, first_step, max_steps, **o: sf.sample(
                m, x=x, steps=sf.PIDController(rtol, atol, first_step, max_steps), progress=False, **o
            ),
            some(
                {
                    "m": model,
                    "x": tensors(),
                    "rtol": numbers,
                    "atol": numbers,
                    "first_step": numbers,
                    "max_steps": st.integers(0, 20),
                },
                {"solver": names, "t_max": times, "t_min": times},
            ),
        ),
        "log_likelihood": (
            sf.log_likelihood,
            some({"model": model, "x": tensors()}, {"steps": steps, "solver": names, "probes": st.integers(-1, 2)}),
        ),
        "mixture": (
            sf.GaussianMixture,
            some({"means": tensors(), "std": st.one_of(numbers, tensors())}, {"weights": tensors()}),
        ),
        "grid": (sf.Grid, some({"times": st.lists(numbers, max_size=4).map(tuple)}, {})),
        "make": (
            sf.grids.make,
            some({"grid": grids, "schedule": st.sampled_from(paths), "steps": steps}, {"t_max": times, "t_min": times}),
        ),
        "condition": (
            lambda m, c, w: m.with_condition(c).with_guidance(w),
            some({"m": model, "c": label, "w": numbers}, {}),
        ),
        "solver": (
            sf.solvers.get,
            some(
                {"solver": names},
                {"x": numbers, "eta": numbers, "coupling": numbers, "order": steps, "coordinates": st.text(max_size=4)},
            ),
        ),
        "schedule": (
            lambda kind, **o: getattr(sf, kind)(**o),
            some(
                {"kind": st.sampled_from(["VPLinear", "VPScaledLinear", "VPCosine", "VE", "RectifiedFlow"])},
                {"t_min": numbers, "t_max": numbers},
            ),
        ),
        "job": (
            lambda **o: runs.Sampling("mixture", solver=runs.spec_of("ddim"), **o),
            some({"n": numbers}, {"block": numbers, "steps": steps, "threads": numbers}),
        ),
    }
    done, failures = 0, []
    end, each = time.monotonic() + seconds, max(1.0, seconds / len(calls))

    def tried(function: Callable[..., Any], arguments: Any, stop: float) -> Callable[[], None]:
        """A round of calls, which find that the time is up by themselves."""

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(options=arguments)
        def one(options):
            nonlocal done
            if time.monotonic() > stop:
                return
            done += 1
            begin = time.monotonic()
            with contextlib.suppress(OURS):
                function(**options)
            assert time.monotonic() - begin < 20.0, "took longer than 20 seconds"

        return one

    for name, (function, arguments) in calls.items():
        stop, begun = min(end, time.monotonic() + each), 0
        while time.monotonic() < stop and begun < rounds:
            begun += 1
            try:
                tried(function, arguments, stop)()
            except Exception as error:
                failures.append(name)
                each_of = getattr(error, "exceptions", [error])  # hypothesis may have found several
                for one in each_of:
                    where = "".join(traceback.format_exception(one, limit=-3))
                    print(f"{name}: {where}", *getattr(one, "__notes__", []), file=sys.stderr, flush=True)
                break
    if failures:
        raise SystemExit(f"{len(failures)} function(s) failed")
    return done


def one_target(name: str, seconds: int) -> None:
    """Fuzz one target in this process."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    WORK.mkdir()
    if name == "functions":
        print(f"{fuzz_functions(seconds)} calls")
        return
    if name != "index":  # the address space of torch and libFuzzer themselves, and what one input may take
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY + 2**31, MEMORY + 2**31))
    fuzz_parser(name, seconds)


TARGETS = (
    "run",
    "inversion",
    "model",
    "shard",
    "manifest",
    "index",
    "npy",
    "safetensors",
    "png",
    "state",
    "schedule",
    "solver",
    "cells",
    "piebench",
    "functions",
)


def main() -> int:
    """Fuzz all targets, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--target", choices=TARGETS)
    options = parser.parse_args()
    if options.target:
        one_target(options.target, options.seconds)
        return 0
    share, failed = options.seconds // (len(TARGETS) + 4), 0  # the functions get five shares
    for name in TARGETS:
        command = [
            sys.executable,
            __file__,
            "--target",
            name,
            "--seconds",
            str(share * (5 if name == "functions" else 1)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        stats = [line.split(":")[-1].strip() for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        counted = done.stdout.strip() if name == "functions" else f"{stats[0] if stats else '?'} inputs"
        print(f"{name:<12} {counted:<16} {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
        if done.returncode:
            failed += 1
            print(done.stdout[-3000:] if name != "functions" else done.stderr[-3000:], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
