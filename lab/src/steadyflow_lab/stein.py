"""What Stein corrections are worth (2606.07835): few-step samplers with and without, beside controls.

Problems: exact mixtures in 2 and 64 dimensions, the digits model, and deliberately wrong scores (smoothed, biased,
quantised). Solvers: DDIM, DPM-Solver++(2M), UniPC, Heun, at 3 to 12 evaluations. Every family of corrections is tuned
to one setting per solver on the tuning problems and seeds; reported are others. The score is the sliced Wasserstein
distance to data, relative to the plain solver's at the same steps; below 1 is better.

Controls: a fixed constant, on all, the late or the first steps; the coefficients shuffled across the samples; one more
step; steps at twice the evaluations, which is the least that a correction at every step costs (a forward pass whose
graph is shared, and a backward one).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from steadyflow import grids, solvers
from steadyflow._integrate import Correction, StepInfo
from steadyflow._internal.tensors import broadcast, max_abs
from steadyflow.corrections import MomentMatching, Relaxed, Stein
from steadyflow.corrections.scaling import rescaled
from steadyflow.datasets import digits
from steadyflow.denoisers import Denoiser, GaussianMixture
from steadyflow.errors import NonFiniteError
from steadyflow.metrics import energy_distance, precision_recall, sliced_wasserstein
from steadyflow.metrics.statistics import average
from steadyflow.models import load
from steadyflow.noise import PERTURBATION, normal
from steadyflow.runs.engines import Engine, InProcess
from steadyflow.schedules import Schedule, VPCosine
from steadyflow.tasks import sample

from .digits import recognise

SOLVERS = ("ddim", "dpmpp-2m", "unipc", "heun")
EVALUATIONS = (3, 5, 8, 12)
LARGE = 50.0
"""A sample with a number beyond this many times the data's root mean square counts as diverged."""


@dataclass(frozen=True)
class Problem:
    """A model, data to compare with, and whether its score is right."""

    name: str
    kind: str
    """"exact", "learned" or "wrong"."""
    model: Denoiser
    data: Tensor

    @property
    def mean_square(self) -> float:
        """The mean square of the data's numbers."""
        return float(self.data.square().mean())


def mixture(dim: int, seed: int) -> GaussianMixture:
    """Make twelve modes of unequal weight, clustered in the plane, or within eight of 64 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.zeros(12, dim)
    means[:, : min(dim, 8)] = 1.2 * torch.randn(12, min(dim, 8), generator=generator)
    weights = 0.2 + torch.rand(12, generator=generator)
    return GaussianMixture(means, 0.12 if dim == 2 else 0.3, weights)


def wrong(model: Denoiser, how: str) -> Denoiser:
    """Make a model whose clean prediction is shifted, or rounded."""

    def net(x: Tensor, time: Tensor, given: Any = None) -> Tensor:
        clean = (model if given is None else model.with_condition(given))(x, float(time[0])).x0
        return clean + 0.08 if how == "biased" else (clean * 8.0).round() / 8.0 + (clean - clean.detach()) * 1.0

    return Denoiser(net, model.schedule, prediction="sample", shape=model.shape, name=f"{model.name}, {how}")


@cache
def problems(part: str, n: int) -> tuple[Problem, ...]:
    """Make the problems for "tuning" or "test": other mixtures, and another half of the digits' labels."""
    first = 0 if part == "tuning" else 10
    schedule: Schedule = VPCosine()
    found = []
    for dim in (2, 64):
        data = mixture(dim, first + dim)
        model = data.denoiser(schedule)
        drawn = data.sample(4 * n, seed=999)
        smooth = GaussianMixture(data.means, data.std * 1.5, data.weights).denoiser(schedule)
        found += [
            Problem(f"{dim}-D", "exact", model, drawn),
            Problem(f"{dim}-D smoothed", "wrong", smooth, drawn),
            Problem(f"{dim}-D biased", "wrong", wrong(model, "biased"), drawn),
            Problem(f"{dim}-D quantised", "wrong", wrong(model, "quantised"), drawn),
        ]
    images, labels = digits("train")
    chosen = labels % 2 == (0 if part == "tuning" else 1)
    learned = load("digits").with_condition(labels[chosen][torch.arange(n) % int(chosen.sum())])
    return (*found, Problem("digits", "learned", learned, images[chosen]))


@dataclass(frozen=True)
class Shuffled:
    """A control: per-sample Stein coefficients, given to other samples."""

    stein: Stein

    def __call__(self, info: StepInfo) -> Any:
        if not self.stein.acts(info):
            return None
        gamma = self.stein.coefficient(info).nan_to_num(1.0).clamp(1.0 - self.stein.trust, 1.0 + self.stein.trust)
        order = normal(0, PERTURBATION, (info.done, 6, 0), range(len(gamma)), ()).argsort()
        return rescaled(info, gamma[order.to(gamma.device)])


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


Make = Callable[[Problem], Correction | None]


@dataclass(frozen=True)
class Setting:
    """One setting of a family: a correction, a grid, and how many steps are made of those paid for."""

    family: str
    label: str
    make: Make = lambda problem: None
    grid: str = "quadratic"
    steps: Callable[[int], int] = lambda steps: steps


def settings() -> list[Setting]:
    """List all families and their settings, "plain" first."""
    levels_of = {"all": (0.0, math.inf), "late": (0.0, 2.0), "first": (20.0, math.inf)}
    found = [
        Setting("plain", "plain"),
        Setting("one more step", "one more step", steps=lambda k: k + 1),
        Setting("equal cost", "twice the steps", steps=lambda k: 2 * k),
    ]
    for grid in ("karras", "log-snr", "uniform"):
        found.append(Setting("grid", grid, grid=grid))
    for trust in (0.05, 0.1, 0.2):
        for when, levels in levels_of.items():
            for form in ("next", "inverse"):
                found.append(
                    Setting(
                        f"Stein, {form}",
                        f"{form}, trust {trust:g}, {when}",
                        lambda p, f=form, t=trust, v=levels: Stein(f, t, v, probes=2),
                    )
                )
            found.append(
                Setting(
                    "Stein, per sample",
                    f"inverse per sample, trust {trust:g}, {when}",
                    lambda p, t=trust, v=levels: Stein("inverse", t, v, "sample", probes=2),
                )
            )
            found.append(
                Setting(
                    "shuffled",
                    f"shuffled, trust {trust:g}, {when}",
                    lambda p, t=trust, v=levels: Shuffled(Stein("inverse", t, v, "sample", probes=2)),
                )
            )
            found.append(
                Setting(
                    "Stein, ridge",
                    f"inverse, ridge 0.5, trust {trust:g}, {when}",
                    lambda p, t=trust, v=levels: Stein("inverse", t, v, probes=2, ridge=0.5),
                )
            )
    factors = {"all": (1.05, 1.1), "late": (0.85, 0.9, 0.95, 1.02, 1.05, 1.1), "first": (0.975, 0.985, 0.99, 1.01)}
    for when, given in factors.items():
        for f in given:
            levels = levels_of[when]
            found.append(Setting("constant", f"times {f:g}, {when}", lambda p, f=f, v=levels: Relaxed(f, v)))
    for trust in (0.1, 0.3, 0.6):
        found.append(
            Setting("moments", f"moments, trust {trust:g}", lambda p, t=trust: MomentMatching(p.mean_square, t))
        )
    for quantile in (0.95, 0.995):
        found.append(
            Setting(
                "thresholding",
                f"thresholding, {quantile:g}",
                lambda p, q=quantile: Thresholded(q, float(p.data.abs().flatten(1).quantile(q, dim=1).median())),
            )
        )
    return found


@dataclass(frozen=True)
class Result:
    """What one run gave."""

    problem: str
    kind: str
    solver: str
    evaluations: int
    family: str
    label: str
    seed: int
    distance: float
    """Sliced 2-Wasserstein distance to the data; infinite where the run broke off."""
    energy: float
    diverged: float
    """Share of samples that are not finite or far too large."""
    precision: float
    """Share of samples within the real digits' balls of three nearest neighbours; NaN where there are no digits."""
    recall: float
    """Share of real digits within the samples' balls; NaN where there are none."""
    recognised: float
    """Share of samples that a classifier takes for the digit they should be; NaN where there are none."""


def run(problem: Problem, solver: str, evaluations: int, setting: Setting, n: int, seed: int) -> Result:
    """Draw n samples of one setting and compare them with the data."""
    method = solvers.get(solver)
    steps = setting.steps(max(1, evaluations // (method.properties.evaluations or 1)))
    correction = setting.make(problem)
    grid = grids.make(setting.grid, problem.model.schedule, steps, t_max=0.99)
    facts = problem.name, problem.kind, solver, evaluations, setting.family, setting.label, seed
    try:
        corrections = () if correction is None else (correction,)
        options = {"solver": method, "grid": grid, "seed": seed, "corrections": corrections, "progress": False}
        x = sample(problem.model, n=n, end="path", **options).x
    except NonFiniteError:
        return Result(*facts, math.inf, math.inf, 1.0, *[math.nan] * 3)
    large = max_abs(x) > LARGE * problem.mean_square**0.5
    data = problem.data
    few = min(n, 400)
    return Result(
        *facts,
        sliced_wasserstein(x, data, directions=64),
        energy_distance(x[:few], data[:few]),
        float(large.double().mean()),
        *(_as_digits(x, problem) if problem.kind == "learned" else [math.nan] * 3),
    )


def _as_digits(x: Tensor, problem: Problem) -> tuple[float, float, float]:
    """Give precision and recall among the real digits, and the share that is recognised."""
    precision, recall = precision_recall(x.flatten(1), problem.data.flatten(1))
    wanted = torch.as_tensor(problem.model.condition)
    return precision, recall, float((recognise(x) == wanted[: len(x)]).double().mean())


@dataclass(frozen=True)
class Score:
    """A family at its tuned setting, over the test cells of a solver and a kind of score."""

    solver: str
    kind: str
    family: str
    label: str
    ratio: float
    """Geometric mean of the distance over the plain solver's."""
    low: float
    high: float
    """95 % bootstrap interval over problems, budgets and seeds."""
    diverged: float
    """Largest share of diverged samples where the plain solver had none."""


def study(
    *,
    n: int = 600,
    seeds: int = 2,
    quick: bool = False,
    engine: Engine | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Score], list[Result]]:
    """Tune each family on its problems and seeds, and score it on the others; in this process or on an engine."""
    engine = engine or InProcess()
    n, seeds = (300, 1) if quick else (n, seeds)
    budgets = (5, 8) if quick else EVALUATIONS
    choices = settings()
    tuned = _runs(engine, "tuning", choices, budgets, n, range(seeds), progress)
    chosen: dict[tuple[str, str], Setting] = {}
    for solver in SOLVERS:
        for family in dict.fromkeys(s.family for s in choices):
            members = [s for s in choices if s.family == family]
            chosen[solver, family] = min(members, key=lambda s: _mean(_ratios(tuned, solver, s.label)))
    scores, results = [], []
    for solver in SOLVERS:
        mine = [chosen[solver, family] for family in dict.fromkeys(s.family for s in choices)]
        found = _runs(engine, "test", mine, budgets, n, range(100, 100 + seeds), progress, (solver,))
        results += found
        for kind in ("exact", "learned", "wrong"):
            part = [r for r in found if r.kind == kind]
            for setting in mine[1:]:
                logs = torch.tensor(_ratios(part, solver, setting.label), dtype=torch.float64)
                mean = average(logs)
                ratio, low, high = (math.exp(v) for v in (mean.value, mean.low, mean.high))
                diverged = _newly_diverged(part, setting.label)
                scores.append(Score(solver, kind, setting.family, setting.label, ratio, low, high, diverged))
    return scores, results


def _runs(engine: Engine, part: str, choices, budgets, n: int, seeds, progress, names=SOLVERS) -> list[Result]:
    def one(name: str) -> list[Result]:
        problem = next(p for p in problems(part, n) if p.name == name)
        return [
            run(problem, solver, evaluations, setting, n, seed)
            for solver in names
            for evaluations in budgets
            for setting in choices
            for seed in seeds
        ]

    cases, found = [problem.name for problem in problems(part, n)], []
    for case, results in zip(cases, engine.map(one, cases), strict=True):
        found += results
        if progress is not None:
            progress(case)
    return found


def _cells(results: Sequence[Result], label: str) -> dict[tuple, Result]:
    return {(r.problem, r.solver, r.evaluations, r.seed): r for r in results if r.label == label}


def _ratios(results: Sequence[Result], solver: str, label: str) -> list[float]:
    """Give logarithms of the distance over the plain solver's; a run that broke off counts as a thousand times."""
    plain, mine = _cells(results, "plain"), _cells(results, label)
    ratios = [mine[key].distance / plain[key].distance for key in mine if key[1] == solver]
    return [math.log(min(ratio, 1e3)) if math.isfinite(ratio) else math.log(1e3) for ratio in ratios]


def _newly_diverged(results: Sequence[Result], label: str) -> float:
    plain, mine = _cells(results, "plain"), _cells(results, label)
    return max((mine[key].diverged for key in mine if plain[key].diverged == 0.0), default=0.0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def table(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Give the scores as text: one row per family, one column per solver and kind."""
    columns = list(dict.fromkeys((s.solver, s.kind) for s in scores))
    rows = []
    for family in dict.fromkeys(s.family for s in scores):
        found = {(s.solver, s.kind): s for s in scores if s.family == family}
        cells = [f"{found[c].ratio:.3f} [{found[c].low:.3f}, {found[c].high:.3f}]" for c in columns]
        rows.append([family, *cells, f"{max(s.diverged for s in found.values()):.2%}"])
    return ["family", *(f"{solver}, {kind}" for solver, kind in columns), "newly diverged"], rows


def digits_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Give precision, recall and recognition of digits per solver and family, means over budgets and seeds."""
    rows = []
    for solver in dict.fromkeys(r.solver for r in results):
        for family in dict.fromkeys(r.family for r in results):
            part = [r for r in results if (r.solver, r.family, r.kind) == (solver, family, "learned")]
            means = [
                _mean([getattr(r, name) for r in part if math.isfinite(r.precision)])
                for name in ("precision", "recall", "recognised")
            ]
            rows.append([solver, family, *(f"{mean:.3f}" for mean in means)])
    return ["solver", "family", "precision", "recall", "recognised"], rows


def figures(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Give the scores, JSON-able."""
    return [dataclasses.asdict(score) for score in scores]
