"""The models and images of the experiments, and what is measured of each image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from steadyflow import grids, noise, solvers
from steadyflow.datasets import digits
from steadyflow.denoisers import Denoiser
from steadyflow.diagnostics import log_likelihood
from steadyflow.diagnostics.amplification import perturbed, sweep
from steadyflow.errors import UnknownNameError
from steadyflow.jacobians import FlowMap
from steadyflow.metrics import rmse
from steadyflow.models import load
from steadyflow.noise import PERTURBATION, like
from steadyflow.solvers.base import Solver, steps_for
from steadyflow.tasks import invert

from ..datasets import faces
from ..studies import Bench
from .correlations import batches

SIZE = 0.02
"""Root mean square of the perturbations, where latents have 1: within the linear regime that `regime` finds."""


@dataclass(frozen=True)
class Problem:
    """A model with held-out images, and how finely it is measured."""

    name: str
    model: Denoiser
    images: Tensor
    """Shape (n, ...), in the model's space: latents of a pipeline."""
    given: Tensor | list[str]
    """The labels or captions of the images."""
    probes: int | None
    """Of the divergence; None for the exact one."""
    steps: int = 12
    """RK4 steps of the generation map and of the likelihood."""
    reference: int = 64
    """RK4 steps that stand for the exact inversion."""
    directions: int = 8
    """Random directions of an image's coefficient."""
    batch: int = 20
    """Images in a piece of work."""

    def under(self, start: int, stop: int) -> Denoiser:
        """Give the model under the conditions of some of the images."""
        return self.model.with_condition(self.given[start:stop])

    def generation(self, start: int, stop: int) -> FlowMap:
        """Give the generation map of some of the images, all but exact."""
        model = self.under(start, stop)
        return FlowMap(model, grids.make("quadratic", model.schedule, self.steps), solvers.get("rk4"))

    def own(self) -> Problem:
        """Give the same number of the model's own samples under the same conditions in place of the images."""
        shape, sigma = tuple(self.images.shape[1:]), float(self.model.schedule.sigma(self.model.schedule.t_max))
        made = []
        for start, stop in batches(len(self.images), self.batch):
            model = self.under(start, stop)
            generation = FlowMap(model, grids.make("quadratic", model.schedule, self.reference), solvers.get("rk4"))
            made.append(generation(sigma * noise.initial(1, range(start, stop), shape)))
        return dataclasses.replace(self, name=f"{self.name}, own samples", images=torch.cat(made))

    @cached_property
    def dim(self) -> int:
        """The number of dimensions of an image."""
        return self.images[0].numel()


def problem(name: str, n: int, quick: bool = False) -> Problem:
    """Load a model with its held-out images: "digits", "faces" or "ink", the last in the latents of its VAE.

    quick: measure faces and ink less finely.
    """
    fine = {"reference": 16, "directions": 3, "probes": 2} if quick else {}
    if name == "digits":
        images, labels = digits("held-out")
        return Problem(name, load(name), images[:n], labels[:n], None, steps=16, batch=25)
    if name == "faces":
        images, labels = faces("held-out")
        settings = {"probes": 8, "reference": 48, "directions": 6, "batch": 10, **fine}
        return Problem(name, load(name), images[:n], labels[:n], **settings)
    if name == "ink":
        from ..editing.ink import bundled, task

        model, job = bundled(), task(n)
        settings = {"probes": 4, "reference": 24, "directions": 4, "batch": 8, "steps": 8, **fine}
        return Problem(name, model, model.encode(job.pictures.images), job.sources, **settings)
    raise UnknownNameError("problem", name, ("digits", "faces", "ink"))


def direction(z: Tensor, k: int, start: int) -> Tensor:
    """Draw the k-th random direction of the images from number `start` on."""
    return like(z, k, PERTURBATION, (0, 2, 0), range(start, start + len(z)))


@dataclass(frozen=True)
class Amplified:
    """How much the generation map amplifies at each image's exact latent."""

    latent: Tensor
    """The latent of a fine solve, float64, shape (n, ...)."""
    along: Tensor
    """The coefficient along each of the random directions, shape (n, directions)."""

    @property
    def random(self) -> Tensor:
        """The mean over the directions, shape (n,)."""
        return self.along.mean(1)

    @property
    def random_error(self) -> Tensor:
        """Its standard error, shape (n,)."""
        return self.along.std(1) / self.along.shape[1] ** 0.5

    @property
    def isotropic(self) -> Tensor:
        """|J|_F / sqrt(dim): the root mean square over the directions, shape (n,)."""
        return self.along.square().mean(1).sqrt()


def amplified(bench: Bench, problem: Problem) -> Amplified:
    """Measure the coefficient along random directions, by perturbation."""
    parts = bench.map(partial(_amplified, problem), batches(len(problem.images), problem.batch))
    return Amplified(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def _amplified(problem: Problem, rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
    model, x = problem.under(*rows), problem.images[slice(*rows)]
    fine = invert(model, x, solver="rk4", steps=problem.reference, grid="quadratic").latent
    generation = problem.generation(*rows)
    along = [perturbed(generation, fine, direction(fine, k, rows[0]), SIZE) for k in range(problem.directions)]
    return fine.double(), torch.stack(along, 1).double()


SWEPT = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
"""The sizes of perturbation that are compared."""


def regime(problem: Problem, found: Amplified, n: int = 8) -> tuple[float, float]:
    """Give the sizes of perturbation between which the coefficient does not depend on it, for half of a few images."""
    rows = 0, min(n, len(problem.images))
    z = found.latent[slice(*rows)].to(problem.images.dtype)
    return sweep(problem.generation(*rows), z, direction(z, 0, 0), sizes=SWEPT).regime


def own_coefficient(problem: Problem, found: Amplified, method: str, nfe: int, n: int = 8) -> Tensor:
    """Give the coefficient of a solver's own map over that of the exact one, for the first images and one direction."""
    rows = 0, min(n, len(problem.images))
    model, z = problem.under(*rows), found.latent[slice(*rows)].to(problem.images.dtype)
    solver = solvers.get(method)
    grid = grids.make("uniform", model.schedule, steps_for(solver, nfe))
    own = perturbed(FlowMap(model, grid, solver), z, direction(z, 0, 0), SIZE)
    return own.double() / found.along[slice(*rows), 0]


@dataclass(frozen=True)
class Dense:
    """Log densities, per dimension."""

    value: Tensor
    """ln p_gen(x) / dim, shape (n,)."""
    mean: Tensor
    """ln |det J| / dim, the logarithm of the geometric mean amplification, shape (n,)."""
    error: Tensor
    """The standard error of both by the divergence's estimate; 0 where that is exact, shape (n,)."""


def densities(bench: Bench, problem: Problem) -> Dense:
    """Compute the log density of each image under the model."""
    parts = bench.map(partial(_densities, problem), batches(len(problem.images), problem.batch))
    return Dense(*(torch.cat(column) / problem.dim for column in zip(*parts, strict=True)))


def _densities(problem: Problem, rows: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    x = problem.images[slice(*rows)]
    options = {"steps": problem.steps, "probes": problem.probes, "seed": rows[0]}
    found = log_likelihood(problem.under(*rows), x, **options)
    return found.value.double(), (found.prior - found.value).double(), found.error.double()


@dataclass(frozen=True)
class RoundTrip:
    """What a solver's inversion and reconstruction leave of each image."""

    solver: str
    nfe: int
    """Evaluations each way."""
    error: Tensor
    """Root mean square reconstruction error, shape (n,)."""
    latent_error: Tensor
    """Root mean square error of the latent, shape (n,)."""
    inversion: Tensor
    """The coefficient along the latent's error, shape (n,)."""


def round_trip(bench: Bench, problem: Problem, found: Amplified, method: str, nfe: int) -> RoundTrip:
    """Invert and reconstruct with a solver on the uniform grid, and measure the amplification of the latent's error."""
    solver = solvers.get(method)
    parts = bench.map(partial(_round_trip, problem, found, solver, nfe), batches(len(problem.images), problem.batch))
    error, latent_error, inversion = (torch.cat(column) for column in zip(*(part[1:] for part in parts), strict=True))
    return RoundTrip(method, parts[0][0], error, latent_error, inversion)


def _round_trip(
    problem: Problem, found: Amplified, solver: Solver, nfe: int, rows: tuple[int, int]
) -> tuple[int, Tensor, Tensor, Tensor]:
    model, x, exact = problem.under(*rows), problem.images[slice(*rows)], found.latent[slice(*rows)]
    inversion = invert(model, x, solver=solver, steps=steps_for(solver, nfe), grid="uniform", progress=False)
    error = rmse(inversion.decode(progress=False).x, x).double()
    offset = inversion.latent.double() - exact
    at = exact.to(x.dtype)
    along = perturbed(problem.generation(*rows), at, offset.to(x.dtype), SIZE).double()
    return inversion.nfe, error, rmse(inversion.latent.double(), exact), along
