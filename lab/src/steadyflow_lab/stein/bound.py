"""The score-controlled bound along few-step runs on mixtures, where the score's error is set and all laws are known."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from steadyflow import grids
from steadyflow.denoisers import GaussianMixture
from steadyflow.schedules import VPCosine

from ..findings import Claim, Finding, verdict
from ..studies import Bench
from ..theory.stein import Shift, shifts
from .problems import mixture
from .quality import decided

SCORES = {"exact": (1.0, 0.0), "smoothed": (1.5, 0.0), "biased": (1.0, 0.08)}
"""The factor of the modes' width in the model, and what is added to its clean estimate."""
FAILS_FROM = 0.01
"""A step is not certified to contract where more than this share of the states has a local constant above 1."""


@dataclass(frozen=True)
class _Run:
    dim: int
    score: str
    steps: int
    shifts: list[Shift]


def _data(dim: int) -> GaussianMixture:
    """The mixture of the study's problem in the plane, or its projection on one axis with fewer modes."""
    found = mixture(2, 12)
    if dim == 2:
        return GaussianMixture(found.means.double(), float(found.std), found.weights.double())
    return GaussianMixture(found.means[:4, :1].double(), float(found.std), found.weights[:4].double())


def _follow(item: tuple[int, str, int, int]) -> _Run:
    dim, score, steps, side = item
    width, bias = SCORES[score]
    data, schedule = _data(dim), VPCosine()
    model = GaussianMixture(data.means, float(data.std) * width, data.weights)
    levels = [schedule.ratio(t) for t in grids.make("quadratic", schedule, steps, t_max=0.99).times]
    return _Run(dim, score, steps, shifts(model, levels, bias=bias, side=side))


def bound(bench: Bench) -> Finding:
    """Hold Stein's coefficient against the bound at every step of runs of 3 to 12 steps."""
    counts = (3, 5) if bench.size.quick else (3, 5, 8, 12)
    sides = {1: 2001, 2: 81} if bench.size.quick else {1: 20_001, 2: 201}
    items = [(dim, score, k, sides[dim]) for dim in (1, 2) for score in SCORES for k in counts]
    runs = bench.map(_follow, items)
    steps = [one for run in runs for one in run.shifts]
    failing = [one for one in steps if one.expanding > FAILS_FROM]
    return Finding(
        "bound",
        "The score-controlled bound at every step of few-step runs",
        _claims(steps, failing),
        ["dimensions", "score", "steps", "bound / error, median", "bound / error, smallest", "bound / gamma*, median",
         "error / gamma*, largest", "expanding steps", "largest constant", "numerical error"],
        [_row(run) for run in runs],
        note=(
            "Error: |gamma_clean - gamma*|, where gamma* is the best coefficient for the model's own denoiser on the "
            "states of the run. The distribution of the states is the push-forward of the starting distribution, and "
            "its score is known; expectations are integrals over a lattice. Numerical error: the gap between the two "
            f"sides of Stein's identity, as a share of gamma*. A step expands if more than {FAILS_FROM:.0%} of the "
            "states have a local Lipschitz constant above 1."
        ),
    )  # fmt: skip


def tightness(one: Shift) -> float:
    """Give the bound over the error; the numerical error counts as error."""
    return one.bound / max(one.error, one.identity * abs(one.meant))


def kept(one: Shift) -> bool:
    """Whether the error is within the bound, but for the numerical error."""
    return one.error <= one.bound + one.identity * abs(one.meant)


def _row(run: _Run) -> list[str]:
    ratios = [tightness(one) for one in run.shifts]
    return [
        str(run.dim),
        run.score,
        str(run.steps),
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.3f}",
        f"{statistics.median(one.bound / abs(one.meant) for one in run.shifts):.2f}",
        f"{max(one.error / abs(one.meant) for one in run.shifts):.2f}",
        f"{sum(one.expanding > FAILS_FROM for one in run.shifts)} of {run.steps}",
        f"{max(one.lipschitz for one in run.shifts):.2f}",
        f"{max(one.identity for one in run.shifts):.0e}",
    ]


def _claims(steps: list[Shift], failing: list[Shift]) -> list[Claim]:
    ratios, there = sorted(map(tightness, steps)), sorted(map(tightness, failing))
    ten = torch.tensor(ratios, dtype=torch.float64).quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    tight, says = sum(r < 2.0 for r in ratios), [one.bound < abs(one.meant) for one in steps]
    says_there = [one.bound < abs(one.meant) for one in failing]
    off_there = max(one.error / abs(one.meant) for one in failing)
    return [
        Claim(
            "bound",
            "under the distribution shift of a run's own states, the coefficient is off by no more than the score "
            "error allows",
            "a score-controlled perturbation bound under distributional shifts; its formula is not in the sources at "
            "hand, so the one tested is derived here",
            f"holds at {sum(map(kept, steps))} of {len(steps)} steps over all runs",
            verdict(all(map(kept, steps))),
        ),
        Claim(
            "bound, where contraction fails",
            "the bound holds where no contraction is certified",
            "said not to rely on the contraction that fails in the trap (a review of the paper)",
            f"holds at {sum(map(kept, failing))} of the {len(failing)} steps that expand, whose local constants reach "
            f"{max(one.lipschitz for one in failing):.1f}",
            verdict(all(map(kept, failing))),
        ),
        Claim(
            "ours: tight",
            "the bound is less than twice the error",
            "not stated",
            f"at {tight} of {len(steps)} steps; the median of bound over error is {statistics.median(ratios):.2f} "
            f"(10th to 90th percentile {ten[0]:.2f} to {ten[1]:.2f}), and {statistics.median(there):.2f} at the steps "
            "that expand",
            decided([r < 2.0 for r in ratios]),
        ),
        Claim(
            "ours: it says something",
            "the bound is smaller than the best coefficient, gamma*, itself, even at the steps that expand",
            "not stated",
            f"at {sum(says)} of {len(steps)} steps, and at {sum(says_there)} of the {len(failing)} that expand, where "
            f"the error reaches {off_there:.0%} of gamma*",
            decided(says),
        ),
    ]  # fmt: skip
