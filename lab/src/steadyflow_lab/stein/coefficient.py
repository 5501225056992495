"""The coefficient itself: what it stands for, EDM's scalings, the drift term of the form for VP, and variances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from steadyflow._internal.tensors import dot
from steadyflow.metrics.statistics import Estimate
from steadyflow.noise import PERTURBATION, like

from ..findings import Claim, Finding, Size, verdict
from ..studies import Bench
from ..theory.stein import edm_scalings
from .quality import decided, short
from .states import (
    FORMS,
    PROBLEMS,
    cells_of,
    data_of,
    noised,
    ratio_of_means,
    run_states,
    step_at,
    terms,
)

_NAMES = {"clean": "clean (EDM)", "vp": "VP"}
_LEVELS = (0.2, 1.0, 5.0, 20.0)
_LEVEL = 0.999
"""Of intervals all of which are to contain a number if a claim is true."""
_OFF = 0.1
"""A coefficient whose interval reaches farther than this from the best one is not known to be it."""


def _count(size: Size, name: str) -> int:
    return size.images if name == "digits" else size.long


@dataclass(frozen=True)
class _Held:
    problem: str
    form: str
    where: str
    level: float
    run: bool
    coefficient: float
    ratio: Estimate


def coefficient(bench: Bench) -> Finding:
    """Hold the coefficient against the best one from reference samples, and against the model's own on a run."""
    size = bench.size

    def on_marginal(item: tuple[int, str, float]) -> list[_Held]:
        k, name, chi = item
        model, x0 = data_of(name, _count(size, name), size.seed)
        x, step = noised(model, x0, chi, size.seed, k), step_at(model, chi, 0.5)
        found = []
        for form in FORMS:
            t = terms(model, x, step, form, x0=x0, probes=4, seed=k)
            assert t.reference is not None  # the data were given
            ratio = ratio_of_means(t.above.mean(0), t.reference, level=_LEVEL)
            found.append(_Held(name, form, "marginal", chi, False, t.coefficient, ratio))
        return found

    def on_run(name: str) -> list[_Held]:
        model, _ = data_of(name, _count(size, name) // 4, size.seed)
        states = run_states(model, _count(size, name) // 4, 8, size.seed)
        found = []
        for k, (x, step) in enumerate(states):
            for form in FORMS:
                t = terms(model, x, step, form, probes=4)
                ratio = ratio_of_means(t.above.mean(0), t.model, level=_LEVEL)
                where = f"step {k + 1} of 8"
                found.append(_Held(name, form, where, step.start.ratio, True, t.coefficient, ratio))
        return found

    held = [one for part in bench.map(on_marginal, cells_of(_LEVELS)) for one in part]
    along = [one for part in bench.map(on_run, PROBLEMS) for one in part]
    claims = [_on_marginals([one for one in held if one.form == form]) for form in FORMS]
    claims += [_on_runs([one for one in along if one.form == form]) for form in FORMS]
    return Finding(
        "coefficient",
        "Stein's coefficient of DDIM's step beside the best coefficient",
        claims,
        ["problem", "states", "noise level", *(f"{_NAMES[f]}: {w}" for f in FORMS for w in ("value", "ratio to best"))],
        [_together(*pair) for pair in zip((held + along)[::2], (held + along)[1::2], strict=True)],
        note=(
            "On marginals, a step halves the noise level, and the best coefficient is computed from the data of which "
            "the states are noised versions; along a run, whose states have no such data, it is computed from the "
            "model's own clean estimate. Intervals are 99.9 % bootstrap intervals over the samples; four probes. All "
            "problems are on a VP path; the noise level is sigma / alpha."
        ),
    )


def _together(one: _Held, other: _Held) -> list[str]:
    cells = [cell for h in (one, other) for cell in (f"{h.coefficient:.3g}", short(h.ratio))]
    return [one.problem, one.where, f"{one.level:.3g}", *cells]


def _close(one: _Held) -> bool:
    return max(abs(one.ratio.low - 1.0), abs(one.ratio.high - 1.0)) < _OFF


def _on_marginals(held: list[_Held]) -> Claim:
    form, close = held[0].form, [one for one in held if _close(one)]
    inside = [one.ratio.low <= 1.0 <= one.ratio.high for one in held]
    off = max(abs(one.ratio.value - 1.0) for one in close) if close else math.nan
    return Claim(
        f"closed form, {_NAMES[form]}",
        f"on exact marginals, and without reference samples, it agrees to within {_OFF:.0%} with the best coefficient "
        "that reference samples give",
        "a closed-form coefficient by Stein's identity, without reference samples",
        f"agrees in {len(close)} of {len(held)} cells, and there it is off by at most {off:.1%}; 1 lies within "
        f"the interval of the ratio in {sum(inside)} cells",
        decided([_close(one) for one in held]),
    )


def _on_runs(along: list[_Held]) -> Claim:
    form, close = along[0].form, [_close(one) for one in along]
    worst = max(along, key=lambda one: abs(one.ratio.value - 1.0))
    return Claim(
        f"reference-free along a run, {_NAMES[form]}",
        f"on the states of an 8-step run, too, it agrees to within {_OFF:.0%} with the best coefficient for the "
        "model's clean estimate",
        "reference-free adaptation at every step of large-step sampling",
        f"agrees at {sum(close)} of {len(along)} steps; the worst ratio is {short(worst.ratio)} "
        f"({worst.problem}, {worst.where})",
        decided(close),
    )


def edm(bench: Bench) -> Finding:
    """Hold EDM's c_skip and c_out against the coefficient of the step along the state itself."""
    size = bench.size

    def one(item: tuple[int, str, float]) -> tuple[list[str], list[bool]]:
        k, name, chi = item
        _, x0 = data_of(name, _count(size, name), size.seed)
        x0 = x0.double()
        y, m = x0 + chi * like(x0, size.seed, PERTURBATION, (k, 10, 0)), x0.square().mean().item()
        skip, out = edm_scalings(chi, m)
        square = dot(y, y)
        dim = torch.full_like(square, x0[0].numel())
        stein = ratio_of_means(chi**2 * dim, square, level=_LEVEL)  # of u = y, whose divergence is d
        best = ratio_of_means(dot(y, y - x0), square, level=_LEVEL)
        rest = (x0 - skip * y).square().flatten(1).mean(1)
        left = ratio_of_means(rest, torch.full_like(square, out**2), level=_LEVEL)
        numbers = [f"{1.0 - skip:.4g}", short(stein), short(best), short(left)]
        inside = [e.low <= v <= e.high for e, v in ((stein, 1.0 - skip), (best, 1.0 - skip), (left, 1.0))]
        return [name, f"{chi:g}", *numbers], inside

    found = bench.map(one, cells_of((0.1, 1.0, 10.0)))
    inside = [k for _, part in found for k in part]
    return Finding(
        "edm",
        "EDM's scalings as Stein's coefficient along the state",
        [
            Claim(
                "EDM view",
                "1 - c_skip is Stein's coefficient of the step along the state itself, and c_out^2 is the mean square "
                "of what that step leaves",
                "a complementary Stein perspective on EDM-style parameterizations; its formulas are not in the sources "
                "at hand, so these are derived here",
                f"{sum(inside)} of {len(inside)} intervals (99.9 % each) contain the value of the formula",
                verdict(all(inside)),
            )
        ],
        [
            "problem",
            "noise level",
            "1 - c_skip",
            "Stein, u = y",
            "best from reference samples",
            "mean square left / c_out^2",
        ],
        [row for row, _ in found],
        note="For c_skip and c_out, sigma_data^2 is the mean square of the data's values; 99.9 % bootstrap intervals.",
    )
