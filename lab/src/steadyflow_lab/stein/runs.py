"""Few-step samplers with and without corrections: what the runs gave, tuned on some problems and reported on others.

Problems: see `problems`. Budgets: 3 to 12 evaluations. Every family of corrections is tuned to one setting per solver
on the tuning problems and seed; reported are others. A run is scored by the sliced Wasserstein distance and the Frechet
distance to the data, and by precision and recall among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steadyflow import grids, solvers
from steadyflow._internal.tensors import max_abs
from steadyflow.corrections import Calibrated, MomentMatching, Stein
from steadyflow.errors import NonFiniteError
from steadyflow.metrics import frechet_distance, precision_recall, sliced_wasserstein
from steadyflow.metrics.statistics import Estimate, average
from steadyflow.tasks import sample

from ..digits import recognise
from ..studies import Bench
from .problems import Problem, problems
from .settings import PLAIN, Setting, factors_of, families, permuted, settings

SOLVERS = ("ddim", "dpmpp-2m", "unipc", "heun")
EVALUATIONS = (3, 5, 8, 12)
LARGE = 50.0
"""A sample with a number beyond this many times the data's root mean square counts as diverged."""
_WORST = 1e3
"""What a run that broke off counts as, over the plain solver's."""


@dataclass(frozen=True)
class Result:
    """What one run gave."""

    problem: str
    kind: str
    evaluations: int
    family: str
    label: str
    seed: int
    distance: float
    """Sliced 2-Wasserstein distance to the data; infinite where the run broke off."""
    frechet: float
    """Frechet distance to the data, in its own coordinates; infinite where the run broke off."""
    precision: float
    """Share of samples within the data's balls of three nearest neighbours."""
    recall: float
    """Share of the data within the samples' balls."""
    recognised: float
    """Share of digits that a classifier takes for what they should be; NaN of other problems."""
    diverged: float
    """Share of samples that are not finite or far too large."""
    limited: float
    """Share of steps whose Stein factor lay at the end of the trust region; NaN without one."""


def run(problem: Problem, solver: str, evaluations: int, setting: Setting, n: int, seed: int) -> Result:
    """Draw n samples of one setting and compare them with the data."""
    method = solvers.get(solver)
    steps = setting.steps(max(1, evaluations // (method.properties.evaluations or 1)))
    correction = setting.make(problem)
    grid = grids.make(setting.grid, problem.model.schedule, steps, t_max=0.99)
    options = {"solver": method, "grid": grid, "progress": False, "end": "path"}
    facts = problem.name, problem.kind, evaluations, setting.family, setting.label, seed
    try:
        if setting.fixed and isinstance(correction, Stein | MomentMatching):
            sample(problem.model, n=n, seed=seed + 1000, corrections=(correction,), **options)
            correction = Calibrated.of(correction)
            correction = permuted(correction, seed) if setting.fixed == "permuted" else correction
        corrections = () if correction is None else (correction,)
        x = sample(problem.model, n=n, seed=seed, corrections=corrections, **options).x
    except NonFiniteError:
        return Result(
            *facts, math.inf, math.inf, 0.0, 0.0, 0.0 if problem.kind == "learned" else math.nan, 1.0, math.nan
        )
    data, flat = problem.data, x.flatten(1)
    large = max_abs(x) > LARGE * problem.mean_square**0.5
    taken = [abs(float(factor) - 1.0) for _, factor in factors_of(correction) if factor.ndim == 0]
    trust = correction.trust if isinstance(correction, Stein) else math.inf
    return Result(
        *facts,
        sliced_wasserstein(x, data, directions=64),
        frechet_distance(flat, data.flatten(1), singular="allow"),
        *precision_recall(flat, data.flatten(1)[:n]),
        _recognised(x, problem),
        float(large.double().mean()),
        mean([float(one > trust * (1.0 - 1e-5)) for one in taken]) if taken else math.nan,
    )


def _recognised(x: Tensor, problem: Problem) -> float:
    """The share of digits that are recognised; NaN where there are none."""
    if problem.kind != "learned":
        return math.nan
    return float((recognise(x) == torch.as_tensor(problem.model.condition)[: len(x)]).double().mean())


@dataclass(frozen=True)
class Study:
    """The runs of one solver on the test problems, every family at its tuned setting."""

    solver: str
    results: list[Result]
    chosen: dict[str, str]
    """The label of each family's setting."""

    def of(self, family: str, kind: str | None = None) -> list[Result]:
        """Give the runs of a family, of all kinds of score or of one."""
        return [r for r in self.results if r.family == family and kind in (None, r.kind)]

    def ratio(self, family: str, kind: str | None = None, over: str = PLAIN, of: str = "distance") -> Estimate:
        """Give the geometric mean of a family's distance over another's, with a bootstrap interval over the runs."""
        logs = log_ratios(self.of(family, kind), self.of(over, kind), of)
        found = average(torch.tensor(logs, dtype=torch.float64))
        return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high))

    def change(self, family: str, of: str, kind: str | None = None) -> Estimate:
        """Give the mean change of a share against the plain solver, with a bootstrap interval over the runs."""
        plain = _by_cell(self.of(PLAIN, kind))
        changes = [getattr(r, of) - getattr(plain[key], of) for key, r in _by_cell(self.of(family, kind)).items()]
        return average(torch.tensor(changes, dtype=torch.float64))

    def newly_diverged(self, family: str) -> float:
        """Give the largest share of diverged samples where the plain solver had none."""
        plain = _by_cell(self.of(PLAIN))
        return max(r.diverged for key, r in _by_cell(self.of(family)).items() if plain[key].diverged == 0.0)


def log_ratios(mine: Sequence[Result], others: Sequence[Result], of: str = "distance") -> list[float]:
    """Give the logarithms of a distance over another's in the same cell; a run that broke off counts as 1000 times."""
    other, found = _by_cell(others), list[float]()
    for key, result in _by_cell(mine).items():
        above, below = getattr(result, of), getattr(other[key], of)
        ratio = above / below if math.isfinite(above) else _WORST
        found.append(math.log(min(max(ratio, 1.0 / _WORST), _WORST)) if math.isfinite(below) else -math.log(_WORST))
    return found


def _by_cell(results: Sequence[Result]) -> dict[tuple[str, int, int], Result]:
    return {(r.problem, r.evaluations, r.seed): r for r in results}


def study(bench: Bench, solver: str) -> Study:
    """Tune each family of corrections to a solver, and run the tuned settings on the test problems and seeds."""
    size = bench.size
    budgets = (5, 8) if size.quick else EVALUATIONS
    labels = list(settings())
    tuned = _runs(bench, "tuning", solver, labels, (5,) if size.quick else (5, 8), size.n // 2, [size.seed])
    plain = [r for r in tuned if r.label == PLAIN]
    chosen: dict[str, str] = {}
    for family in families():
        members = [label for label, setting in settings().items() if setting.family == family]
        chosen[family] = min(members, key=lambda label: mean(log_ratios([r for r in tuned if r.label == label], plain)))
    seeds = [100 + size.seed] if size.quick else [100 + size.seed, 101 + size.seed]
    return Study(solver, _runs(bench, "test", solver, list(chosen.values()), budgets, size.n, seeds), chosen)


def _runs(
    bench: Bench, part: str, solver: str, labels: Sequence[str], budgets: Sequence[int], n: int, seeds: Sequence[int]
) -> list[Result]:
    def one(item: tuple[str, int]) -> list[Result]:
        name, evaluations = item
        problem = next(p for p in problems(part, n) if p.name == name)
        return [run(problem, solver, evaluations, settings()[label], n, seed) for label in labels for seed in seeds]

    items = [
        (f"{part}-{problem.name.replace(' ', '-')}-{k}", (problem.name, k))
        for problem in problems(part, n)
        for k in budgets
    ]
    how = {"labels": list(labels), "n": n, "seeds": list(seeds)}
    name = f"stein-{solver}{'-quick' if bench.size.quick else ''}"
    found = bench.cells(name, one, items, lambda rows: [Result(**row) for row in rows], **how)
    return [result for results in found for result in results]


def mean(values: Sequence[float]) -> float:
    """The mean of numbers."""
    return math.fsum(values) / len(values)
