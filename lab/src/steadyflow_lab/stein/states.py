"""Steps at states of a known law, and the terms of which Stein's coefficient is made, sample by sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from steadyflow import grids
from steadyflow._internal.tensors import dot
from steadyflow.datasets import digits
from steadyflow.denoisers import Denoiser
from steadyflow.jacobians.divergences import DivergenceMethod, divergence
from steadyflow.jacobians.maps import StepMap
from steadyflow.metrics.statistics import Estimate
from steadyflow.models import load
from steadyflow.noise import PERTURBATION, like
from steadyflow.schedules import VPCosine
from steadyflow.solvers import DDIM
from steadyflow.solvers.base import Step
from steadyflow.tasks import sample

from .problems import mixture

PROBLEMS = ("2-D", "64-D", "digits")
FORMS = ("clean", "vp")
_MODES = {"2-D": 2, "64-D": 64}


def cells_of(levels: Sequence[float]) -> list[tuple[int, str, float]]:
    """All problems at all levels, numbered."""
    return [(k, *pair) for k, pair in enumerate((name, chi) for name in PROBLEMS for chi in levels)]


@cache
def data_of(name: str, n: int, seed: int) -> tuple[Denoiser, Tensor]:
    """Give a problem's model and n samples of its data; digits are under their labels, and repeat after 1,500."""
    if name == "digits":
        images, labels = digits("train")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).repeat(-(-n // len(images)))
        return load("digits").with_condition(labels[order[:n]]), images[order[:n]]
    found = mixture(_MODES[name], 10 + _MODES[name])
    return found.denoiser(VPCosine()), found.sample(n, seed=seed)


def step_at(model: Denoiser, level: float, share: float) -> Step:
    """Make the step from a noise level sigma/alpha to a share of it."""
    path = model.schedule
    return Step.between(path, path.t_from_ratio(level), path.t_from_ratio(share * level))


def noised(model: Denoiser, x0: Tensor, level: float, seed: int, cell: int = 0) -> Tensor:
    """Draw states at a noise level whose data are x0, exactly of the marginal's law; each cell has its own noise."""
    at = model.schedule.at(model.schedule.t_from_ratio(level))
    return at.alpha * x0 + at.sigma * like(x0, seed, PERTURBATION, (cell, 9, 0))


def run_states(model: Denoiser, n: int, steps: int, seed: int) -> list[tuple[Tensor, Step]]:
    """Give the states of a plain DDIM run from t = 0.99 before each of its steps, with the step."""
    grid = grids.make("quadratic", model.schedule, steps, t_max=0.99)
    options = {"solver": "ddim", "grid": grid, "seed": seed, "end": "path", "record": "all", "progress": False}
    found = sample(model, n=n, **options).trajectory
    assert found is not None  # it was asked for
    ends = itertools.pairwise(grid.times)
    return [(x, Step.between(model.schedule, t0, t1)) for x, (t0, t1) in zip(found.x, ends, strict=False)]


@dataclass(frozen=True)
class Terms:
    """What the coefficient of one form of a step is made of: it is the mean of `above` over the mean of `size`."""

    form: str
    above: Tensor
    """One number per probe and sample, shape (P, B)."""
    size: Tensor
    """|u|^2, shape (B,)."""
    drift: Tensor
    """The part of `above` that needs no divergence, shape (B,): zero for "clean"."""
    reference: Tensor | None
    """<u, z - x0>, where the data x0 of the states are given, shape (B,): what replaces `above` if they are known."""
    model: Tensor
    """The same with the model's clean estimate instead of x0."""
    scale: float
    """A change of gamma by 1 moves the step's end by this times |u|, in model space."""

    @property
    def coefficient(self) -> float:
        """The coefficient, from all probes and samples."""
        return (self.above.mean() / self.size.mean()).item()


def terms(
    model: Denoiser,
    x: Tensor,
    step: Step,
    form: str,
    *,
    x0: Tensor | None = None,
    method: DivergenceMethod = "vjp",
    probes: int = 1,
    seed: int = 0,
) -> Terms:
    """Measure the terms of a form, "clean" or "vp", at the states x of a DDIM step."""
    start, end = step.start, step.end
    stepping = StepMap(model, DDIM(), step, x)
    with torch.no_grad():
        landed, clean = stepping(x), model(x, start.t).x0
    of_step = divergence(stepping, x, method=method, probes=probes, seed=seed).double()
    dim, x, landed = x[0].numel(), x.double(), landed.double()
    if form == "clean":
        z, u, scale = x / start.alpha, x / start.alpha - landed / end.alpha, end.alpha
        drift = torch.zeros(len(x), dtype=torch.float64)
        above = start.ratio**2 * (dim - of_step * (start.alpha / end.alpha))
    else:
        z, u, scale = x, x - landed, 1.0
        drift = (1.0 - 1.0 / start.alpha) * dot(x, u)
        above = drift + start.sigma**2 / start.alpha * (dim - of_step)
    reference = None if x0 is None else dot(u, z - x0.double())
    return Terms(form, above, dot(u, u), drift, reference, dot(u, z - clean.double()), scale)


def ratio_of_means(
    above: Tensor, below: Tensor, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The mean of some numbers over the mean of others that belong to the same samples, with a bootstrap interval."""
    rows = torch.randint(len(above), (resamples, len(above)), generator=torch.Generator().manual_seed(seed))
    drawn = above[rows].mean(1) / below[rows].mean(1)
    tail = (1.0 - level) / 2.0
    low, high = drawn.quantile(torch.tensor([tail, 1.0 - tail], dtype=drawn.dtype)).tolist()
    return Estimate((above.mean() / below.mean()).item(), low, high)


def log_slope(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x by least squares."""
    a, b = (torch.tensor([math.log(v) for v in values], dtype=torch.float64) for values in (x, y))
    a = a - a.mean()
    return ((a * b).sum() / a.square().sum()).item()
