"""The experiments of arXiv 2506.18290: what inaccurate reconstruction has to do with instability.

`toy`: where the generation map of small mixtures expands. `theorem`: the probability of expansion against the
dimension. `study`: reconstruction error against instability coefficient on real images, over solvers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadyflow import grids, solvers
from steadyflow._internal.tensors import norm
from steadyflow.datasets import digits
from steadyflow.denoisers import Denoiser, GaussianMixture
from steadyflow.diagnostics.amplification import Sweep, coefficient, isotropic, sweep
from steadyflow.errors import UnknownNameError
from steadyflow.jacobians import FlowMap
from steadyflow.metrics import rmse
from steadyflow.metrics.statistics import Estimate, pearson, spearman, wilson
from steadyflow.models import load
from steadyflow.noise import PERTURBATION, like
from steadyflow.runs.engines import Engine, InProcess
from steadyflow.schedules import VPLinear
from steadyflow.solvers.base import steps_for
from steadyflow.tasks import invert

from .datasets import faces

SOLVERS = (
    ("euler", 500),
    ("heun", 500),
    ("rk4", 500),
    ("ees25", 498),
    ("euler", 50),
    ("heun", 50),
    ("rk4", 48),
    ("ees25", 48),
)
"""Solvers and evaluations each way: the paper's setting first."""


@dataclass(frozen=True)
class Toy:
    """The largest stretch of the generation map over a grid of latents."""

    latents: Tensor
    """Shape (m, d)."""
    images: Tensor
    """Where each goes, shape (m, d)."""
    stretch: Tensor
    """The largest singular value there, shape (m,)."""
    geometric: Tensor
    """|det J|^(1/d), shape (m,)."""


def toy(dim: int = 2, *, side: int = 81, std: float = 0.15, steps: int = 48) -> Toy:
    """Compute the stretch of two modes on a line or five in the plane, over latents within 3 sigma."""
    axis = torch.linspace(-3.0, 3.0, side, dtype=torch.float64)
    if dim == 1:
        mixture, z = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), std), axis[:, None]
    else:
        angles = torch.arange(5, dtype=torch.float64) * (2.0 * torch.pi / 5.0)
        mixture = GaussianMixture(1.5 * torch.stack([angles.cos(), angles.sin()], 1), std)
        z = torch.cartesian_prod(axis, axis)
    model = mixture.denoiser(VPLinear())
    generation = FlowMap(model, grids.make("quadratic", model.schedule, steps), solvers.get("rk4"))
    dense = generation.dense(z)
    values = torch.linalg.svdvals(dense)
    return Toy(z, generation(z), values[:, 0], values.log().mean(1).exp())


@dataclass(frozen=True)
class Share:
    """How often a data point lies where the generation map expands."""

    dim: int
    data: str
    """"real" (uniform over a cube that holds the modes) or "generated" (from the model itself)."""
    std: float
    geometric: Estimate
    """Share of points with geometric mean amplification above 1."""
    random: Estimate
    """Share of points with an amplification above 1 along a random direction."""


def theorem(
    dims: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    *,
    stds: Sequence[float] = (0.3, 0.1),
    n: int = 400,
    modes: int = 8,
    steps: int = 48,
) -> list[Share]:
    """Measure how certain expansion gets with dimension: the theorem, for real data of density bounded below.

    Real data are uniform over the cube [-1.5, 1.5]^d; the model generates a mixture of `modes` modes in it, of spread
    std. The geometric mean at x is (p_prior(z) / p_gen(x))^(1/d), both densities in closed form but for the latent,
    which is found by RK4. The same of points from the model itself is the control.
    """
    rows = []
    for std in stds:
        for dim in dims:
            generator = torch.Generator().manual_seed(dim)
            means = 2.0 * torch.rand(modes, dim, generator=generator, dtype=torch.float64) - 1.0
            mixture = GaussianMixture(means, std)
            model = mixture.denoiser(VPLinear())
            low, high = model.schedule.t_range
            uniform = 3.0 * torch.rand(n, dim, generator=generator, dtype=torch.float64) - 1.5
            for data, x in (("real", uniform), ("generated", mixture.marginal(model.schedule, low).sample(n))):
                inversion = invert(model, x, solver="rk4", steps=steps)
                z = inversion.latent
                log_ratio = mixture.marginal(model.schedule, high).log_prob(z)
                log_ratio = log_ratio - mixture.marginal(model.schedule, low).log_prob(x)
                generation = FlowMap(model, inversion.grid.reversed(), solvers.get("rk4"))
                along = coefficient(generation, z, _direction(z))
                rows.append(Share(dim, data, std, _share(log_ratio > 0.0), _share(along > 1.0)))
    return rows


@dataclass(frozen=True)
class Row:
    """Reconstruction error and instability of each image, for one solver."""

    solver: str
    steps: int
    nfe: int
    error: Tensor
    """Root mean square reconstruction error of each image, shape (n,)."""
    latent_error: Tensor
    """Root mean square error of each latent, shape (n,)."""
    coefficients: dict[str, Tensor]
    """By direction: "random" (perturbation of the solver's own map), "inversion error" and "isotropic", each (n,)."""
    pearson: dict[str, Estimate]
    """Of log error and log coefficient, by direction."""
    spearman: dict[str, Estimate]
    """Of error and coefficient, by direction; "latent error" is that of the reconstruction error with the latent's."""


@dataclass(frozen=True)
class Study:
    """The main experiment on one model."""

    name: str
    rows: list[Row]
    sweep: Sweep
    """The coefficient against the size of the perturbation, for the first solver."""
    perturbation: float
    """The size used: the geometric middle of the linear regime shared by the images."""


def problem(name: str, n: int) -> tuple[Denoiser, Tensor]:
    """Load a model with its held-out images, under their labels; the name is "digits" or "faces"."""
    if name not in ("digits", "faces"):
        raise UnknownNameError("problem", name, ("digits", "faces"))
    images, labels = digits("held-out") if name == "digits" else faces("held-out")
    return load(name).with_condition(labels[:n]), images[:n]


def study(
    model: Denoiser,
    images: Tensor,
    *,
    name: str = "model",
    methods: Sequence[tuple[str, int]] = SOLVERS,
    probes: int = 8,
    reference: int = 100,
    engine: Engine | None = None,
    progress: Callable[[str], None] | None = None,
) -> Study:
    """Invert the images, generate them again, and set the error against the instability coefficient.

    images: shape (n, ...). methods: solvers with their evaluations each way. reference: steps of the RK4 solve that
    stands for the exact ODE in the latent's error. engine: where the methods are tried, in this process by default.
    """
    grid = grids.make("quadratic", model.schedule, reference)
    exact = invert(model, images.double(), solver="rk4", grid=grid).latent
    generation = FlowMap(model, grids.make("quadratic", model.schedule, min(reference, 32)), solvers.get("rk4"))
    at = exact.to(images.dtype)
    overall, _ = isotropic(generation, at, probes=probes)
    direction = _direction(at)
    first = grids.make("uniform", model.schedule, steps_for(solvers.get(methods[0][0]), min(methods[0][1], 50)))
    swept = sweep(FlowMap(model, first, solvers.get(methods[0][0])), at, direction)
    low, high = swept.regime
    size = (low * high) ** 0.5 if low == low else 1e-2
    if progress is not None:
        progress("reference")

    def one(entry: tuple[str, int]) -> Row:
        method, nfe = entry
        solver = solvers.get(method)
        inversion = invert(model, images, solver=solver, steps=steps_for(solver, nfe), grid="uniform")
        error = rmse(inversion.decode().x, images).double()
        offset = inversion.latent - at
        own = FlowMap(model, inversion.grid.reversed(), solver)
        stretched = own(inversion.latent + size * direction) - own(inversion.latent)
        coefficients = {
            "random": norm(stretched) / norm(size * direction),
            "inversion error": coefficient(generation, at, offset),
            "isotropic": overall,
        }
        coefficients = {key: value.double() for key, value in coefficients.items()}
        latent_error = rmse(inversion.latent.double(), exact)
        return Row(
            method,
            inversion.steps,
            inversion.nfe,
            error,
            latent_error,
            coefficients,
            {key: pearson(value.log(), error.log()) for key, value in coefficients.items()},
            {key: spearman(value, error) for key, value in {**coefficients, "latent error": latent_error}.items()},
        )

    rows = []
    for row in (engine or InProcess()).map(one, methods):
        rows.append(row)
        if progress is not None:
            progress(f"{row.solver}, {row.nfe} evaluations")
    return Study(name, rows, swept, size)


def figures(result: Study, shares: Sequence[Share]) -> dict[str, Any]:
    """Give all figures of the experiments, JSON-able."""
    estimate = dataclasses.asdict
    return {
        "theorem": [estimate(share) for share in shares],
        "linear regime": result.sweep.regime,
        "perturbation": result.perturbation,
        "reconstruction": [
            {
                "solver": row.solver,
                "nfe": row.nfe,
                "error": row.error.tolist(),
                "latent error": row.latent_error.tolist(),
                "coefficients": {key: value.tolist() for key, value in row.coefficients.items()},
                "pearson": {key: estimate(value) for key, value in row.pearson.items()},
                "spearman": {key: estimate(value) for key, value in row.spearman.items()},
            }
            for row in result.rows
        ],
    }


def table(result: Study) -> tuple[list[str], list[list[str]]]:
    """Give the rows as text: the headings, and a list of cells per row."""
    heads = ["solver", "nfe", "error", "latent error", "E random", "E inv. error", "isotropic"]
    heads += ["rank corr. random", "rank corr. inv. error", "rank corr. isotropic", "rank corr. latent error"]
    cells = [
        [
            row.solver,
            str(row.nfe),
            f"{row.error.median():.1e}",
            f"{row.latent_error.median():.1e}",
            *(f"{value.median():.3g}" for value in row.coefficients.values()),
            *(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in row.spearman.values()),
        ]
        for row in result.rows
    ]
    return heads, cells


def theorem_table(rows: Sequence[Share]) -> tuple[list[str], list[list[str]]]:
    """Give the theorem's shares as text."""
    heads = ["std", "data", "dimension", "geometric mean > 1", "random direction > 1"]
    return heads, [[f"{r.std:g}", r.data, str(r.dim), str(r.geometric), str(r.random)] for r in rows]


def draw_toys(line: Toy, plane: Toy, figure: Any) -> None:
    """Draw the expansion regions: G and its slope on the line; the stretch over latents and images in the plane."""
    left, middle, right = figure.subplots(1, 3)
    left.plot(line.latents[:, 0], line.images[:, 0], color="C0", label="G(z)")
    left.plot(line.latents[:, 0], line.stretch, color="C3", label="dG/dz")
    left.fill_between(line.latents[:, 0], 0, line.stretch, where=(line.stretch > 1).tolist(), color="C3", alpha=0.2)
    left.set(xlabel="latent z", title="two modes on a line")
    left.legend(frameon=False)
    for axes, points, title in (
        (middle, plane.latents, "five modes: over latents"),
        (right, plane.images, "over what they generate"),
    ):
        shown = axes.scatter(*points.T, c=plane.stretch.log10(), s=3, cmap="RdBu_r", vmin=-1.5, vmax=1.5)
        axes.set(title=title, aspect="equal")
    figure.colorbar(shown, ax=[middle, right], label="log10 of the largest stretch (red expands)")


def draw_theorem(rows: Sequence[Share], axes: Any) -> None:
    """Draw the share of points with mean amplification above 1 against the dimension, with Wilson intervals."""
    for k, (std, data) in enumerate(dict.fromkeys((r.std, r.data) for r in rows)):
        chosen = [r for r in rows if (r.std, r.data) == (std, data)]
        dims, shares = [r.dim for r in chosen], [r.geometric for r in chosen]
        axes.plot(
            dims, [e.value for e in shares], "o-" if data == "real" else "s--", color=f"C{k}", label=f"{data}, {std}"
        )
        axes.fill_between(dims, [e.low for e in shares], [e.high for e in shares], color=f"C{k}", alpha=0.2)
    axes.set(xscale="log", xlabel="dimension", ylabel="share with amplification > 1", ylim=(-0.03, 1.03))
    axes.legend(frameon=False, title="data, spread of the modes")


def draw_study(result: Study, figure: Any) -> None:
    """Draw error against coefficient for the paper's setting, and the sweep over perturbation sizes."""
    row = result.rows[0]
    axes = figure.subplots(1, len(row.coefficients) + 1)
    for panel, (name, values) in zip(axes, row.coefficients.items(), strict=False):
        panel.loglog(values, row.error, ".", alpha=0.6)
        e = row.spearman[name]
        title = f"rank correlation {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"
        panel.set(xlabel=f"coefficient, {name}", ylabel=f"error, {row.solver}, {row.nfe} evaluations", title=title)
        panel.title.set_fontsize(9)
    axes[-1].loglog(result.sweep.sizes, result.sweep.coefficients, lw=0.5, color="C0", alpha=0.4)
    axes[-1].axvline(result.perturbation, color="C3", lw=1)
    axes[-1].set(xlabel="size of the perturbation", ylabel="coefficient, random direction")


def _direction(z: Tensor) -> Tensor:
    return like(z, 0, PERTURBATION, (0, 2, 0))


def _share(events: Tensor) -> Estimate:
    return wilson(int(events.sum()), len(events))
