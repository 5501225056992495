"""What is compared: the paper's coefficient as written, this project's variants of it, other remedies, and controls.

Every family has one or more settings, of which tuning picks one per solver. A control has what a correction costs, or
does what it does, without what the paper says it does it by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from steadyflow._integrate import Correction, StepInfo
from steadyflow._internal.tensors import broadcast
from steadyflow.corrections import Calibrated, MomentMatching, Relaxed, Stein
from steadyflow.corrections.scaling import rescaled
from steadyflow.noise import PERTURBATION, normal

from .problems import Problem

FREE = ("paper, clean, free", "paper, VP, free")
CLAMPED = ("paper, clean, clamped", "paper, VP, clamped")
"""The paper's two forms, per batch and at every step as written: as they come, and within a trust region."""
CONTROLS = ("constant", "one more step", "equal cost")
PLAIN = "plain"
EVERYWHERE = (0.0, math.inf)
_LEVELS = {"all": EVERYWHERE, "late": (0.0, 2.0), "first": (20.0, math.inf)}
_PAPER: tuple[tuple[str, Literal["clean", "vp"]], ...] = (("clean", "clean"), ("VP", "vp"))


@dataclass(frozen=True)
class Shuffled:
    """A control: per-sample Stein coefficients, given to other samples."""

    stein: Stein

    def __call__(self, info: StepInfo) -> Any:
        if not self.stein.acts(info):
            return None
        gamma = self.stein.within_trust(self.stein.coefficient(info))
        order = normal(0, PERTURBATION, (info.done, 6, 0), range(len(gamma)), ()).argsort()
        return rescaled(info, gamma[order.to(gamma.device)], self.stein.space)


class Thresholded:
    """Dynamic thresholding of each step's clean prediction: cut at a quantile and rescaled (Saharia et al. 2022)."""

    def __init__(self, quantile: float, bound: float):
        self._quantile, self._bound = quantile, bound

    def __call__(self, info: StepInfo) -> Any:
        start, end, clean = info.step.start, info.step.end, info.denoised
        x = info.solver.output(info.before)
        ratio = end.sigma / start.sigma
        gain = end.alpha - ratio * start.alpha
        size = clean.flatten(1).abs().quantile(self._quantile, dim=1).clamp_min(self._bound)
        size = broadcast(size, x)
        cut = torch.maximum(torch.minimum(clean, size), -size) * (self._bound / size)
        return info.solver.with_sample(info.state, ratio * x + gain * cut, info.step.schedule, end.t)


@dataclass(frozen=True)
class Setting:
    """One setting of a family: a correction, a grid, and how many steps are made of those paid for."""

    family: str
    label: str
    make: Callable[[Problem], Correction | None] = lambda problem: None
    grid: str = "quadratic"
    steps: Callable[[int], int] = lambda steps: steps
    fixed: Literal["", "kept", "permuted"] = ""
    """Whether the factors are those of a run from another seed, at each level the same or permuted among the levels."""


def permuted(factors: Calibrated, seed: int) -> Calibrated:
    """Give the factors to other levels: a control for what they know of theirs."""
    order = torch.randperm(len(factors.factors), generator=torch.Generator().manual_seed(seed)).tolist()
    return dataclasses.replace(factors, factors=tuple(factors.factors[k] for k in order))


@cache
def settings() -> dict[str, Setting]:
    """List all families' settings by their labels, "plain" first."""
    found = [
        Setting(PLAIN, PLAIN),
        Setting("one more step", "one more step", steps=lambda k: k + 1),
        Setting("equal cost", "twice the steps", steps=lambda k: 2 * k),
    ]
    found += [Setting("grid", grid, grid=grid) for grid in ("karras", "log-snr", "uniform")]
    for name, form in _PAPER:
        found.append(Setting(f"paper, {name}, free", f"{name}, free", _stein(form, math.inf, "all")))
        for trust in (0.05, 0.1, 0.2):
            make, label = _stein(form, trust, "all"), f"{name}, trust {trust:g}"
            found.append(Setting(f"paper, {name}, clamped", label, make))
            found.append(Setting(f"{name}, other steps' factors", f"{label}, permuted", make, fixed="permuted"))
    for trust in (0.05, 0.1, 0.2):
        for when in _LEVELS:
            for form in ("next", "inverse"):
                found.append(Setting(f"Stein, {form}", f"{form}, trust {trust:g}, {when}", _stein(form, trust, when)))
    for trust in (0.1, 0.2):
        for when in ("all", "late"):
            rest = f"trust {trust:g}, {when}"
            one = _stein("inverse", trust, when, "sample")
            found.append(Setting("Stein, per sample", f"inverse per sample, {rest}", one))
            found.append(Setting("the same, shuffled", f"shuffled, {rest}", lambda p, f=one: Shuffled(f(p))))
    factors = {"all": (1.05, 1.1), "late": (0.85, 0.9, 0.95, 1.02, 1.05, 1.1), "first": (0.975, 0.985, 0.99, 1.01)}
    for when, given in factors.items():
        for f in given:
            found.append(Setting("constant", f"times {f:g}, {when}", lambda p, f=f, v=_LEVELS[when]: Relaxed(f, v)))
    for trust in (0.1, 0.3, 0.6):
        make = _moments(trust)
        found.append(Setting("moments", f"moments, trust {trust:g}", make))
        found.append(Setting("moments, calibrated", f"moments, trust {trust:g}, kept", make, fixed="kept"))
    for quantile in (0.95, 0.995):
        found.append(
            Setting(
                "thresholding",
                f"thresholding, {quantile:g}",
                lambda p, q=quantile: Thresholded(q, float(p.data.abs().flatten(1).quantile(q, dim=1).median())),
            )
        )
    return {setting.label: setting for setting in found}


def families() -> list[str]:
    """List the families, "plain" first."""
    return list(dict.fromkeys(setting.family for setting in settings().values()))


def _stein(
    form: Literal["next", "clean", "inverse", "vp"],
    trust: float,
    when: str,
    per: Literal["batch", "sample"] = "batch",
) -> Callable[[Problem], Stein]:
    return lambda problem: Stein(form, trust, _LEVELS[when], per, probes=2)


def _moments(trust: float) -> Callable[[Problem], MomentMatching]:
    return lambda problem: MomentMatching(problem.mean_square, trust)


def factors_of(correction: Any) -> list[tuple[float, Tensor]]:
    """The factors that a correction with a record has taken; none of any other."""
    return correction.record.factors if isinstance(correction, Stein) else []
