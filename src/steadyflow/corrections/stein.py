"""Stein corrections of large steps (SteinDiff, arXiv 2606.07835).

In y = x / alpha, with chi = sigma / alpha, let T be the solver's step from y at chi0 to chi1 and u = y - T(y) its
residual. The corrected step is y - gamma u; gamma = 1 is the plain one. Minimising E |y - gamma u - x0|^2 with
Tweedie's formula E[x0 | y] = y + chi0^2 score and Stein's identity E <u, score> = - E div u gives, with no samples of
the data,

    gamma_clean = chi0^2 E[div u] / E|u|^2,          div u = d - div T,

and aiming at the next level on the same ray, y* = x0 + (chi1 / chi0) (y - x0),

    gamma_next  = (1 - chi1 / chi0) gamma_clean.

This is the paper's coefficient where alpha = 1, and avoids its drift term 1 - 1/alpha, singular as alpha -> 0, by
the change of variable. For an exact score and Euler's step on exact marginals gamma_next = 1: its departure from 1 is
a gauge of how far the state has left its marginal. Steps from alpha = 0 are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .._integrate import StepInfo
from .._internal.tensors import dot
from ..errors import InputError, UnknownNameError
from ..jacobians.divergences import METHODS, DivergenceMethod, divergence
from ..jacobians.maps import StepMap
from .scaling import acts_between, rescaled, residual

Form = Literal["next", "clean", "inverse"]
FORMS: tuple[Form, ...] = ("next", "clean", "inverse")
_COST = {"vjp": 2.0, "jvp": 1.0, "difference": 2.0}
"""Evaluations per probe, beside one to build the graph."""


@dataclass
class SteinRecord:
    """What a `Stein` has measured and cost, over all steps of all runs since it was created."""

    coefficients: list[tuple[float, Tensor]] = field(default_factory=list[tuple[float, Tensor]])
    """Per step, the noise level chi0 and the coefficient before the trust region, a number or of shape (B,)."""
    evaluations: float = 0.0
    """Extra evaluations per sample: one for the graph of a step, two for a transposed product, one for a Jacobian
    product."""


@dataclass(frozen=True)
class Stein:
    """A correction that scales each step by Stein's coefficient, within a trust region.

    It works with every deterministic solver, and the history of a multistep one goes on. See docs/papers/stein.md for
    what it is worth. The options are frozen, but the object carries a record that changes as it acts.

    Args:
        form: "next" or "clean" (see the top of this module), or "inverse", 1 / gamma_next, which steps further where
            the state has contracted too little.
        trust: How far the coefficient may depart from 1: it is clipped to [1 - trust, 1 + trust].
        levels: The noise levels sigma/alpha, of a step's beginning, between which it acts.
        per: Whether there is one coefficient per "batch" (the paper's) or per "sample".
        probes: The number of random vectors in the estimate of the divergence.
        method: How to estimate the divergence; see `jacobians.divergence`.
        reuse: Whether all steps share their random vectors.
        ridge: The share by which the coefficient is shrunk towards 1, in [0, 1).
        record: The record to add to; a new one by default.

    Attributes:
        record: The coefficients and the cost. It is mutable and accumulates over all steps of all runs that the object
            is given to; it has no part in comparisons. Give each run an object of its own to tell their records apart.

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
        if not self.acts(info):
            return None
        if info.solver.properties.stochastic:
            raise InputError(f"stein: solver {info.solver.name!r} is stochastic, its step has no residual")
        coefficient = self.coefficient(info)
        self.record.coefficients.append((info.step.start.ratio, coefficient.detach()))
        gamma = 1.0 + (1.0 - self.ridge) * (coefficient - 1.0)
        gamma = gamma.nan_to_num(1.0).clamp(1.0 - self.trust, 1.0 + self.trust)
        return rescaled(info, gamma)

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
        of_step = found * (start.alpha / end.alpha)
        u = residual(info)
        size = dot(u, u)
        spread = x[0].numel() - of_step
        if self.per == "batch":
            size, spread = size.mean(), spread.mean()
        clean = start.ratio**2 * spread / size
        ahead = (1.0 - end.ratio / start.ratio) * clean
        return {"clean": clean, "next": ahead, "inverse": 1.0 / ahead}[self.form]
