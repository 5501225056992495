"""Devices: what there is, its memory, and how fast it multiplies matrices in each precision."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .findings import Finding, cause_of

PRECISIONS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SLOW = 0.5
"""Below this share of the speed in float32, a half precision saves memory and no time."""
_SIDES = {"cpu": 256, "cuda": 4096, "mps": 1024}
_GIB = 2**30

Speeds = dict[str, float | None]
"""Operations per second by the name of a precision; None where the device does not have it."""


def findings() -> Iterator[Finding]:
    """Look at the processor and at each GPU."""
    yield _cpu()
    yield _arithmetic("cpu", torch.device("cpu"))
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            yield _cuda(k)
            yield _arithmetic(f"cuda:{k}", torch.device("cuda", k))
    else:
        yield _no_cuda(_has_nvidia(), torch.version.cuda, _initialised)
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory() / _GIB
        yield Finding("devices", "mps", "pass", f"Apple GPU, {memory:.0f} GiB of memory", figures={"gib": memory})
        yield _arithmetic("mps", torch.device("mps"))


def usable() -> list[torch.device]:
    """The GPUs on which the self test runs as well."""
    found = [torch.device("cuda", k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *([torch.device("mps")] if torch.backends.mps.is_available() else [])]


def speeds(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Speeds:
    """Measure how fast a device multiplies matrices, the best of three times.

    Args:
        device: The device.
        clock: Tells the time in seconds.
    """
    return {str(dtype).removeprefix("torch."): _speed(device, dtype, clock) for dtype in PRECISIONS}


def _speed(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float | None:
    side = _SIDES[device.type]
    try:
        a = torch.ones(side, side, dtype=dtype, device=device)
        times: list[float] = []
        for _ in range(4):  # the first one also makes ready
            begun = clock()
            float((a @ a)[0, 0])  # which waits for the device
            times.append(clock() - begun)
    except (RuntimeError, TypeError):
        return None
    return 2.0 * side**3 / max(min(times[1:]), 1e-9)


def _cpu() -> Finding:
    threads, cores = torch.get_num_threads(), len(getattr(os, "sched_getaffinity", _all_cores)(0))
    says, figures = f"{threads} of {cores} cores used by torch", {"threads": threads, "cores": cores}
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_AVPHYS_PAGES"} <= set(os.sysconf_names):
        page = os.sysconf("SC_PAGE_SIZE")
        free, whole = (os.sysconf(name) * page / _GIB for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
        says, figures = f"{says}, {free:.1f} of {whole:.1f} GiB of memory free", {**figures, "free": free, "gib": whole}
    return Finding("devices", "cpu", "pass", says, figures=figures)


def _all_cores(_: int) -> range:
    return range(os.cpu_count() or 1)


def _cuda(k: int) -> Finding:
    about = torch.cuda.get_device_properties(k)
    try:
        free, whole = (number / _GIB for number in torch.cuda.mem_get_info(k))
    except RuntimeError as error:
        says = f"{about.name}, which cannot be used ({cause_of(error)})"
        return Finding("devices", f"cuda:{k}", "fail", says, "end what else holds it, or update its driver")
    says = f"{about.name} of capability {about.major}.{about.minor}, {free:.1f} of {whole:.1f} GiB of memory free"
    return Finding("devices", f"cuda:{k}", "pass", says, figures={"name": about.name, "free": free, "gib": whole})


def _has_nvidia() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def _initialised() -> None:
    torch.cuda.init()


def _no_cuda(gpu: bool, build: str | None, initialise: Callable[[], None]) -> Finding:
    """Why torch sees no GPU.

    Args:
        gpu: Whether there are signs of one of NVIDIA's.
        build: The version of CUDA that torch is built for, if it is.
        initialise: Raises the cause.
    """
    if not gpu:
        return Finding("devices", "cuda", "note", "no NVIDIA GPU")
    if build is None:
        says, remedy = (
            "an NVIDIA GPU, but torch is built without CUDA",
            "install a build with it: pytorch.org/get-started",
        )
        return Finding("devices", "cuda", "note", says, remedy)
    try:
        initialise()
        cause = "no device is visible; see CUDA_VISIBLE_DEVICES"
    except Exception as error:  # torch raises several kinds
        cause = cause_of(error)
    remedy = f"update the driver to one for CUDA {build}, or install a build of torch for the driver"
    return Finding("devices", "cuda", "fail", f"an NVIDIA GPU that torch cannot use ({cause})", remedy)


def _arithmetic(name: str, device: torch.device, measured: Speeds | None = None) -> Finding:
    """How fast each precision is.

    Args:
        name: What the device is called.
        device: The device.
        measured: Its speeds, where they are known.
    """
    found = speeds(device) if measured is None else measured
    plain, figures = found["float32"], {"operations per second": found}
    if plain is None:
        says = "does not multiply matrices in float32"
        return Finding(
            "devices", f"{name} arithmetic", "fail", says, "install a build of torch for this device", figures
        )
    parts, slow = [f"float32 {plain / 1e9:.0f} GFLOP/s"], list[str]()
    for precision, speed in found.items():
        if precision == "float32":
            continue
        if speed is None:
            parts.append(f"no {precision}")
            continue
        is_slow = precision != "float64" and speed < SLOW * plain
        slow += [precision] if is_slow else []
        parts.append(f"{precision} {speed / plain:.2g} times as fast{' (slow)' if is_slow else ''}")
    remedy = f"work in float32 here: {' and '.join(slow)} would save memory and no time" if slow else ""
    return Finding("devices", f"{name} arithmetic", "note" if slow else "pass", ", ".join(parts), remedy, figures)
