"""Environment variables that change what steadyflow and the packages below it do."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .findings import Finding

_YES = ("1", "ON", "YES", "TRUE")
"""What huggingface_hub takes for yes, in any case of letters."""
_OTHERS = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "STEADYFLOW_SOLVERS")


def offline() -> bool:
    """Whether the hub is told to fetch nothing."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _YES


def findings() -> Iterator[Finding]:
    """Look at each variable."""
    given = os.environ.get("HF_HUB_OFFLINE")
    told = "HF_HUB_OFFLINE is not set" if given is None else f"HF_HUB_OFFLINE={given}"
    figures = {"offline": offline()}
    if offline():
        says = f"{told}: pipelines by name come from the cache, and nothing is fetched"
        yield Finding("settings", "hub", "pass", says, figures=figures)
    elif given and given.upper() not in ("0", "OFF", "NO", "FALSE"):
        says = f"{told}, which counts as no: pipelines by name are fetched"
        yield Finding("settings", "hub", "note", says, "set HF_HUB_OFFLINE to 1 or 0", figures)
    else:
        says = f"{told}: pipelines by name that are not in the cache are fetched"
        yield Finding("settings", "hub", "pass", says, figures=figures)
    there = {name: os.environ[name] for name in _OTHERS if name in os.environ}
    says = ", ".join(f"{name}={value}" for name, value in there.items()) or f"none of {', '.join(_OTHERS)} is set"
    yield Finding("settings", "environment", "pass", says, figures=there)
