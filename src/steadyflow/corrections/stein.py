"""Stein corrections of large steps (SteinDiff, arXiv 2606.07835), and two that are simpler.

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

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..batches import against, dot
from ..diagnostics.divergence import METHODS, DivergenceMethod, divergence
from ..diagnostics.maps import StepMap
from ..errors import InputError, UnknownNameError
from ..integrate import Moment
from ..solvers.base import State

Form = Literal["next", "clean", "inverse"]
FORMS = ("next", "clean", "inverse")
_COST = {"vjp": 2.0, "jvp": 1.0, "difference": 2.0}  # evaluations a probe, beside one to build the graph


@dataclass
class Record:
    """What a correction has measured and cost, over all steps since it was made."""

    coefficients: list[tuple[float, Tensor]] = field(default_factory=list)
    """The noise level chi0 and the coefficient before the trust region, a step: a number or (B,)."""
    evaluations: float = 0.0
    """Extra evaluations a sample: one for the graph of a step, two for a transposed product, one for a Jacobian's."""


@dataclass(frozen=True)
class Stein:
    """A correction that scales each step by Stein's coefficient, within a trust region.

    form: "next" or "clean" (see above), or "inverse", 1 / gamma_next, which goes on where the state has contracted too
        little. trust: the coefficient is kept in [1 - trust, 1 + trust].
    levels: the noise levels sigma/alpha, of a step's beginning, between which it acts.
    per: one coefficient a "batch" (the paper's) or a "sample". probes, method, reuse: of the divergence's estimate;
        with `reuse` all steps share their probes. ridge: shrinks the coefficient towards 1 by this share.

    Works with every deterministic solver; multistep ones keep their history. `record` tells coefficients and cost.
    See docs/papers/stein.md for what it is worth.

    Raises `InputError` for options out of range, and for stochastic solvers.
    """

    form: Form = "inverse"
    trust: float = 0.1
    levels: tuple[float, float] = (0.0, 2.0)
    per: Literal["batch", "sample"] = "batch"
    probes: int = 1
    method: DivergenceMethod = "vjp"
    reuse: bool = True
    ridge: float = 0.0
    record: Record = field(default_factory=Record, compare=False)

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

    def __call__(self, moment: Moment) -> State:
        if not self.acts(moment):
            return None
        if moment.solver.facts.stochastic:
            raise InputError(f"stein: solver {moment.solver.name!r} is stochastic, its step has no residual")
        coefficient = self.coefficient(moment)
        self.record.coefficients.append((moment.model.schedule.ratio(moment.leg.t0), coefficient.detach()))
        gamma = 1.0 + (1.0 - self.ridge) * (coefficient - 1.0)
        gamma = gamma.nan_to_num(1.0).clamp(1.0 - self.trust, 1.0 + self.trust)
        return rescaled(moment, gamma)

    def acts(self, moment: Moment) -> bool:
        """Whether the step that was taken is one to correct."""
        return _within(moment, self.levels)

    def coefficient(self, moment: Moment) -> Tensor:
        """The coefficient of the step that was taken, before the trust region: a number, or one a sample, (B,)."""
        schedule, leg = moment.model.schedule, moment.leg
        step = StepMap(moment.model, moment.solver, leg, moment.before)
        x = step.x
        samples = None if moment.noise is None else moment.noise.samples
        found = divergence(
            step, x, method=self.method, probes=self.probes, seed=0 if self.reuse else moment.step, samples=samples
        ).mean(0)
        self.record.evaluations += 1.0 + self.probes * _COST.get(self.method, 2.0 * x[0].numel())
        of_step = found * (schedule.alpha(leg.t0) / schedule.alpha(leg.t1))
        u = residual(moment)
        size = dot(u, u)
        spread = x[0].numel() - of_step
        if self.per == "batch":
            size, spread = size.mean(), spread.mean()
        before, after = schedule.ratio(leg.t0), schedule.ratio(leg.t1)
        clean = before**2 * spread / size
        ahead = (1.0 - after / before) * clean
        return {"clean": clean, "next": ahead, "inverse": 1.0 / ahead}[self.form]


@dataclass(frozen=True)
class Relaxed:
    """Every step between two noise levels taken `factor` times as far: no Stein, no cost. A control, and a remedy.

    Raises `InputError` unless 0 < factor < 2.
    """

    factor: float = 1.05
    levels: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self):
        if not 0.0 < self.factor < 2.0:
            raise InputError(f"relaxed: expected 0 < factor < 2, got {self.factor}")

    def __call__(self, moment: Moment) -> State:
        if not _within(moment, self.levels):
            return None
        return rescaled(moment, torch.tensor(self.factor, dtype=moment.x.dtype, device=moment.x.device))


@dataclass(frozen=True)
class MomentMatching:
    """Each step scaled so that the batch has the second moment that the path has at the new level; no evaluations.

    On the path E|y|^2 / d = m + chi^2, m the data's mean square. Few-step flows contract too little or too much; this
    puts the size right, and only that. The scale gamma solves E|y - gamma u|^2 = d (m + chi1^2), the root nearer to 1.

    mean_square: m, of the training data's numbers. trust: gamma is kept in [1 - trust, 1 + trust]. A batch should hold
    a few hundred numbers at least. Raises `InputError` for a mean square or a trust that is not positive.
    """

    mean_square: float
    trust: float = 0.25

    def __post_init__(self):
        if not (self.mean_square > 0.0 and self.trust > 0.0):
            raise InputError(f"moments: expected positive numbers, got {self.mean_square} and {self.trust}")

    def __call__(self, moment: Moment) -> State:
        schedule, leg = moment.model.schedule, moment.leg
        if leg.rising or schedule.alpha(leg.t0) == 0.0:
            return None
        y = moment.solver.output(moment.before).double() / schedule.alpha(leg.t0)
        u = residual(moment).double()
        a, b = u.square().mean(), -2.0 * (y * u).mean()
        c = y.square().mean() - (self.mean_square + schedule.ratio(leg.t1) ** 2)
        root = (b * b - 4.0 * a * c).clamp_min(0.0).sqrt()  # no solution: the nearest there is
        roots = torch.stack([(-b - root) / (2.0 * a), (-b + root) / (2.0 * a)])
        gamma = roots[(roots - 1.0).abs().argmin()].nan_to_num(1.0).clamp(1.0 - self.trust, 1.0 + self.trust)
        return rescaled(moment, gamma.to(moment.x.dtype))


def shift_bound(residual_square: float, fisher: float, level: float) -> float:
    """How far Stein's coefficient can be from the one it stands for, on states that have left the model's marginal.

    On states of density q the step to the denoised point that is best for the model's own denoiser has the coefficient
    gamma* = - chi0^2 E_q<u, s> / E_q|u|^2, s the model's score; Stein's identity replaces s by the score s_q of the
    states. By Cauchy and Schwarz  |gamma_clean - gamma*| <= chi0^2 sqrt(E_q|s - s_q|^2 / E_q|u|^2). Only scores enter:
    it holds for any step, also where no contraction is certified. (Our derivation; the paper announces such a bound.)

    residual_square: E_q|u|^2. fisher: E_q|s - s_q|^2, scores in y = x / alpha. level: chi0.
    """
    if not residual_square > 0.0 or fisher < 0.0 or level < 0.0:
        raise InputError("shift_bound: expected E|u|^2 > 0, and the others >= 0")
    return level * level * math.sqrt(fisher / residual_square)


def edm_scalings(level: float, mean_square: float) -> tuple[float, float]:
    """c_skip and c_out of EDM (Karras et al. 2022), as Stein's coefficient of the step along the state itself.

    For u = y, div u = d, the best y - gamma y for x0 has gamma = chi^2 d / E|y|^2 = chi^2 / (chi^2 + m): that is
    1 - c_skip. What is left has mean square c_out^2 = chi^2 m / (chi^2 + m), which the network is scaled to.

    level: chi = sigma / alpha. mean_square: m, of the data's numbers, centred.
    """
    if not mean_square > 0.0 or level < 0.0:
        raise InputError("edm_scalings: expected a mean square > 0 and a level >= 0")
    total = level * level + mean_square
    return mean_square / total, level * math.sqrt(mean_square / total)


def residual(moment: Moment) -> Tensor:
    """u = y - T(y) of the step that was taken, shape (B, ...)."""
    schedule, leg = moment.model.schedule, moment.leg
    return moment.solver.output(moment.before) / schedule.alpha(leg.t0) - moment.x / schedule.alpha(leg.t1)


def rescaled(moment: Moment, gamma: Tensor) -> State:
    """The solver's state at y - gamma u, gamma a number or of shape (B,)."""
    schedule, leg = moment.model.schedule, moment.leg
    # y - gamma u = T(y) + (1 - gamma) u
    x = moment.x + (1.0 - against(gamma, moment.x)) * residual(moment) * schedule.alpha(leg.t1)
    return moment.solver.moved(moment.state, x, schedule, leg.t1)


def _within(moment: Moment, levels: tuple[float, float]) -> bool:
    """Whether the step denoises from a finite noise level between the given ones."""
    level = moment.model.schedule.ratio(moment.leg.t0)
    return levels[0] <= level <= levels[1] and math.isfinite(level) and not moment.leg.rising
