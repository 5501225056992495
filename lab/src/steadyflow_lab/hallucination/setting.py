"""The setting of arXiv 2605.06831: 25 modes, the paper's grids and samplers, and starts on a segment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from steadyflow import solvers
from steadyflow._integrate import Correction
from steadyflow.corrections import Escape, Restart
from steadyflow.denoisers import Denoiser, GaussianMixture
from steadyflow.errors import UnknownNameError
from steadyflow.grids import Grid
from steadyflow.models import load
from steadyflow.schedules import Schedule, Tabulated

UNIT = 8.0**0.5
"""Lengths are divided by this for training and sampling: 2 sqrt 2."""
SPREAD, SPACING = 0.02 / UNIT, 2.0 / UNIT
SPREADS, LENGTHS = tuple(s / UNIT for s in (0.01, 0.02, 0.05)), tuple(v / UNIT for v in (1.0, 2.0, 3.0))
"""What figure E.16 varies."""
TAU = 9
"""Steps of the 50-step grid that are left when trajectories have come to a segment (tau_3 of the paper)."""


@dataclass(frozen=True)
class Problem:
    """A model and the mixture that it is of."""

    name: str
    model: Denoiser
    mixture: GaussianMixture

    @property
    def schedule(self) -> Schedule:
        """The model's path, 1,000 steps."""
        return self.model.schedule

    @property
    def top(self) -> int:
        """The noisiest timestep."""
        return round(self.schedule.domain[1])


def mixture_of(
    dim: int = 2, *, spacing: float = SPACING, std: float = SPREAD, dtype: torch.dtype = torch.float32
) -> GaussianMixture:
    """Make the 25 modes: a 5 x 5 grid in the plane, the farthest points of a lattice beyond."""
    if dim == 2:
        return GaussianMixture.grid(5, spacing=spacing, std=std, dtype=dtype)
    return GaussianMixture.farthest_points(25, dim, spacing=spacing, std=std, dtype=dtype)


MODELS = {"mixture25": 2, "mixture25-8d": 8, "mixture25-32d": 32}
"""The learned models and their dimensions."""


def learned(name: str = "mixture25") -> Problem:
    """Load a trained model of 25 modes."""
    if name not in MODELS:
        raise UnknownNameError("model of 25 modes", name, MODELS)
    return Problem(name, load(name), mixture_of(MODELS[name]))


def exact(
    dim: int = 2,
    *,
    spacing: float = SPACING,
    std: float = SPREAD,
    schedule: Schedule | None = None,
    level: bool = False,
    weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Make the problem of 25 modes with the exact score.

    level: bring the modes so near that the nearest are `spacing` apart, as in the plane (the farthest points of the
    lattice are 3 times as far apart in 4 dimensions, and 16 times in 64). weights: of the modes; equal by default.
    dtype: float64 where starts 1e-12 lengths from a midpoint must be told apart.
    """
    mixture = mixture_of(dim, spacing=spacing, std=std, dtype=dtype)
    if level:
        apart = torch.cdist(mixture.means, mixture.means).fill_diagonal_(torch.inf).min()
        mixture = GaussianMixture(mixture.means * (spacing / apart), mixture.std, mixture.weights)
    if weights is not None:
        mixture = GaussianMixture(mixture.means, mixture.std, weights)
    return Problem(f"exact, {dim}-d", mixture.denoiser(schedule or Tabulated.linear()), mixture)


def trained(ablation: str) -> Problem:
    """Load a model of figure E.16: "base", "short" (T = 250), "wide" (sigma = 0.05) or "near" (l = 1)."""
    mixture = mixture_of(
        spacing=LENGTHS[0] if ablation == "near" else SPACING, std=SPREADS[2] if ablation == "wide" else SPREAD
    )
    return Problem(f"mixture25-{ablation}", load(f"mixture25-{ablation}"), mixture)


def quadratic(count: int, top: int = 999) -> Grid:
    """Make the paper's quadratic grid: floor(linspace(0, sqrt(0.8 T), count)^2), strictly increasing, then turned."""
    times: list[int] = []
    for k in range(count):
        t = int((0.8 * (top + 1)) * (k / (count - 1)) ** 2)
        times.append(max(t, times[-1] + 1) if times else t)
    return Grid(tuple(float(t) for t in reversed(times)))


def every(top: int = 999) -> Grid:
    """Make the grid of all timesteps, noisy end first, which DDPM takes."""
    return Grid(tuple(float(t) for t in range(top, -1, -1)))


def thinned(top: int = 999) -> Grid:
    """Make the grid of every fourth timestep, noisy end first, and 0."""
    return Grid(tuple(float(t) for t in [*range(top, 0, -4), 0]))


def uniform(count: int, top: int = 999) -> Grid:
    """Make the grid of `count` timesteps at equal distances from 0.8 T down to 0."""
    return Grid(tuple(float(round(0.8 * (top + 1) * (1.0 - k / (count - 1)))) for k in range(count)))


uniform_20, uniform_50 = partial(uniform, 20), partial(uniform, 50)


@dataclass(frozen=True)
class Method:
    """A sampler: a solver on a grid, and what corrects it."""

    label: str
    solver: str | solvers.Solver
    grid: Callable[[int], Grid]
    correct: Callable[[], Correction] | None = None

    @property
    def stochastic(self) -> bool:
        """Whether one start has many outcomes."""
        solver = solvers.get(self.solver) if isinstance(self.solver, str) else self.solver
        return solver.properties.stochastic or self.correct is not None

    @property
    def back(self) -> int:
        """The evaluations per sample of a plain restart, which are no part of the run's own count."""
        correction = None if self.correct is None else self.correct()
        return correction.back * correction.rounds if isinstance(correction, Restart) else 0


def ddim(count: int = 50) -> Method:
    """Make DDIM at `count` evaluations on the quadratic grid."""
    return Method(f"DDIM-{count}", "ddim", lambda top: quadratic(count, top))


DDPM = Method("DDPM-1000", "ddpm", every)


def hybrid(noisy: int, tau: int = TAU) -> Method:
    """Make DDIM-50 whose next `noisy` steps from tau_3 on are ancestral."""
    after = max(0, tau - noisy)
    return Method(f"hybrid, {noisy} steps", solvers.get("hybrid", noisy=noisy, after=after), quadratic_50)


def quadratic_50(top: int) -> Grid:
    """Make the grid of the 50-step samplers."""
    return quadratic(50, top)


def eta(value: float, count: int = 50) -> Method:
    """Make DDIM with noise of the share `value` at every step."""
    return Method(f"eta = {value:g}", solvers.get("ddim", eta=value), lambda top: quadratic(count, top))


def segments(mixture: GaussianMixture) -> Tensor:
    """Find the pairs of modes that are nearest neighbours, (m, 2); there are 40 on the 5 x 5 grid."""
    distance = torch.cdist(mixture.means, mixture.means)
    pairs = torch.triu_indices(len(distance), len(distance), 1).T
    lengths = distance[pairs[:, 0], pairs[:, 1]]
    return pairs[lengths <= lengths.min() * 1.001]


def on_segments(problem: Problem, offsets: Tensor, tau: int = TAU) -> Tensor:
    """Make states (n, d) on the segments, tau_3 before the end.

    offsets: from the midpoint in lengths of the segment, shape (n,).
    """
    pairs = segments(problem.mixture)
    pair = pairs[torch.arange(len(offsets)) % len(pairs)]
    first, second = problem.mixture.means[pair[:, 0]], problem.mixture.means[pair[:, 1]]
    t = quadratic(50, problem.top).times[-tau - 1]
    y = first + (0.5 + offsets)[:, None].to(first) * (second - first)
    return problem.schedule.alpha(t) * y


def pair_length(problem: Problem) -> float:
    """Give the distance of nearest modes."""
    i, j = segments(problem.mixture)[0]
    return float((problem.mixture.means[i] - problem.mixture.means[j]).norm())


def near_midpoint(problem: Problem, x: Tensor, t: float, share: float) -> Tensor:
    """Say which states (n, d) are within `share` lengths of the midpoint of their two nearest modes, (n,).

    In every direction: a cell's centre is half a length from the midpoints around it.
    """
    y = x / problem.schedule.alpha(t)
    means = problem.mixture.means.to(y)
    ends = means[torch.cdist(y, means).topk(2, dim=1, largest=False).indices]
    length = (ends[:, 1] - ends[:, 0]).norm(dim=1)
    return (y - ends.mean(1)).norm(dim=1) <= share * length


def remedies() -> Sequence[Method]:
    """List what the table of remedies compares: about fifty to sixty evaluations each, and DDPM's thousand."""
    return (
        ddim(50),
        ddim(57),
        Method("Escape on DDIM-50", "ddim", quadratic_50, Escape),
        hybrid(2),
        hybrid(5),
        hybrid(8),
        Method("Restart on DDIM-42", "ddim", lambda top: quadratic(42, top), lambda: Restart(5, 15)),
        Method("Heun-28 with churn 10", solvers.get("edm-churn", churn=10.0), lambda top: quadratic(29, top)),
        eta(0.2, 57),
        eta(0.5, 57),
        eta(1.0, 57),
        DDPM,
    )
