"""Stein corrections of large steps (SteinDiff, arXiv 2606.07835).

In y = x / alpha, with chi = sigma / alpha, let T be the solver's step from y at chi0 to chi1 and u = y - T(y) its
residual. The corrected step is y - gamma u; gamma = 1 is the plain one. Minimising E |y - gamma u - x0|^2 with
Tweedie's formula E[x0 | y] = y + chi0^2 score and Stein's identity E <u, score> = - E div u gives, with no samples of
the data,

    gamma_clean = chi0^2 E[div u] / E|u|^2,          div u = d - div T,

and aiming at the next level on the same ray, y* = x0 + (chi1 / chi0) (y - x0),

    gamma_next  = (1 - chi1 / chi0) gamma_clean.

The first is the paper's coefficient for EDM, where alpha = 1. Its form for other paths stays in x, with u = x - T(x)
and the corrected step x - gamma u,

    gamma_vp    = [(1 - 1/alpha) E<x, u> + (sigma^2 / alpha) E[div u]] / E|u|^2.

Its two terms grow without bound as alpha -> 0 and nearly cancel, so that what is left of them is a batch's noise; the
change of variable has no such terms. This form is here to be measured beside the others.

For an exact score and Euler's step on exact marginals gamma_next = 1: its departure from 1 is a gauge of how far the
state has left its marginal. Steps from alpha = 0 are left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._integrate import StepInfo
from .._internal.tensors import dot
from ..errors import InputError, UnknownNameError
from ..jacobians.divergences import METHODS, DivergenceMethod, divergence
from ..jacobians.maps import StepMap
from .scaling import ScalingRecord, Space, acts_between, denoises, rescaled, residual

Form = Literal["next", "clean", "inverse", "vp"]
FORMS: tuple[Form, ...] = ("next", "clean", "inverse", "vp")
_COST = {"vjp": 2.0, "jvp": 1.0, "difference": 2.0}
"""Evaluations per probe, beside one to build the graph."""


@dataclass
class SteinRecord(ScalingRecord):
    """What a `Stein` has measured, taken and cost, over all steps of all runs since it was created."""

    coefficients: list[tuple[float, Tensor]] = field(default_factory=list[tuple[float, Tensor]])
    """Per step, the noise level chi0 and the coefficient before the trust region, a number or of shape (B,)."""
    evaluations: float = 0.0
    """Extra evaluations per sample: one for the graph of a step, two for a transposed product, one for a Jacobian
    product."""


@dataclass(frozen=True)
class Stein:
    """A correction that scales each step by Stein's coefficient, within a trust region.

    It works with every deterministic solver, and the history of a multistep one goes on. See docs/papers/stein.md for
    what it is worth. The options are frozen, but the object carries a record that changes as it acts. With one
    coefficient per batch a sample depends on the others of its batch; `Calibrated` frees it of them.

    Args:
        form: "next", "clean" or "vp" (see the top of this module), or "inverse", 1 / gamma_next, which steps further
            where the state has contracted too little. "clean" and "vp" aim at clean data, as the paper does.
        trust: How far the coefficient may depart from 1: it is clipped to [1 - trust, 1 + trust]. Infinity takes it as
            it is, and a run that diverges by it raises `NonFiniteError`.
        levels: The noise levels sigma/alpha, of a step's beginning, between which it acts.
        per: Whether there is one coefficient per "batch" (the paper's) or per "sample".
        probes: The number of random vectors in the estimate of the divergence.
        method: How to estimate the divergence; see `jacobians.divergence`.
        reuse: Whether all steps share their random vectors.
        ridge: The share by which the coefficient is shrunk towards 1, in [0, 1).
        record: The record to add to; a new one by default.

    Attributes:
        record: The coefficients, the factors and the cost. It is mutable and accumulates over all steps of all runs
            that the object is given to; it has no part in comparisons. Give each run an object of its own to tell
            their records apart.

    Raises:
        UnknownNameError: There is no such form, method or "per".
        InputError: An option is out of range, or the solver of the run is stochastic.
    """

    form: Form = "inverse"
    trust: float = 0.1
    levels: tuple[float, float] = (0.0, 2.0)
    per: Literal["batch", "sample"] = "batch"
    probes: int = 1
    method: DivergenceMethod = "vjp"
    reuse: bool = True
    ridge: float = 0.0
    record: SteinRecord = field(default_factory=SteinRecord, compare=False)
    differentiable: ClassVar[bool] = False

    def __post_init__(self):
        for name, value, accepted in (("form", self.form, FORMS), ("per", self.per, ("batch", "sample"))):
            if value not in accepted:
                raise UnknownNameError(name, value, accepted)
        if self.method not in METHODS:
            raise UnknownNameError("divergence", self.method, METHODS)
        if not self.trust > 0.0 or not 0.0 <= self.ridge < 1.0 or self.probes < 1:
            raise InputError(
                f"stein: expected trust > 0, 0 <= ridge < 1 and probes >= 1, got {self.trust}, {self.ridge} and "
                f"{self.probes}"
            )

    def __call__(self, info: StepInfo) -> Any:
        level = info.step.start.ratio
        if not self.acts(info):
            if denoises(info):
                self.record.factors.append((level, torch.ones((), dtype=info.x.dtype, device=info.x.device)))
            return None
        if info.solver.properties.stochastic:
            raise InputError(f"stein: solver {info.solver.name!r} is stochastic, its step has no residual")
        coefficient = self.coefficient(info)
        gamma = self.within_trust(coefficient)
        self.record.coefficients.append((level, coefficient.detach()))
        self.record.factors.append((level, gamma.detach()))
        return rescaled(info, gamma, self.space)

    @property
    def space(self) -> Space:
        """Where the step is scaled: "model" space for the form "vp", else "noise" coordinates."""
        return "model" if self.form == "vp" else "noise"

    def within_trust(self, coefficient: Tensor) -> Tensor:
        """The factor that is taken for a coefficient: shrunk by the ridge, and clipped to the trust region.

        Args:
            coefficient: As `coefficient` gives it. One that is not a number, of a step that goes nowhere, counts as 1.
        """
        gamma = 1.0 + (1.0 - self.ridge) * (coefficient - 1.0)
        gamma = gamma.nan_to_num(1.0, posinf=math.inf, neginf=-math.inf)
        return gamma.clamp(1.0 - self.trust, 1.0 + self.trust)

    def acts(self, info: StepInfo) -> bool:
        """Whether the step that was made begins between the noise levels.

        Args:
            info: Where the run stands.
        """
        return acts_between(info, self.levels)

    def coefficient(self, info: StepInfo) -> Tensor:
        """Estimate the coefficient of the step that was made, and add the cost to the record.

        Args:
            info: Where the run stands.

        Returns:
            The coefficient before the trust region: a number, or one per sample, shape (B,).
        """
        start, end = info.step.start, info.step.end
        step = StepMap(info.model, info.solver, info.step, info.before)
        x = step.x
        samples = None if info.noise is None else info.noise.samples
        found = divergence(
            step, x, method=self.method, probes=self.probes, seed=0 if self.reuse else info.done, samples=samples
        ).mean(0)
        probes = 1 if self.method == "exact" else self.probes
        self.record.evaluations += 1.0 + probes * _COST.get(self.method, 2.0 * x[0].numel())
        u = residual(info, self.space)
        if self.form == "vp":
            drift, size, spread = dot(x, u), dot(u, u), x[0].numel() - found
            if self.per == "batch":
                drift, size, spread = drift.mean(), size.mean(), spread.mean()
            return ((1.0 - 1.0 / start.alpha) * drift + (start.sigma**2 / start.alpha) * spread) / size
        size, spread = dot(u, u), x[0].numel() - found * (start.alpha / end.alpha)
        if self.per == "batch":
            size, spread = size.mean(), spread.mean()
        clean = start.ratio**2 * spread / size
        ahead = (1.0 - end.ratio / start.ratio) * clean
        return {"clean": clean, "next": ahead, "inverse": 1.0 / ahead}[self.form]
