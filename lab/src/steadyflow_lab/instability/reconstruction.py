"""The experiment as the paper ran it, for a model and pictures of one's own: 100 pictures, Euler, 500 steps each way.

Batches are read, measured and kept one after the other, so that memory does not grow with the number of pictures, and
an interruption loses no more than a batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steadyflow._internal import files, strict_json
from steadyflow._internal.tensors import norm, unit
from steadyflow.datasets import arrays
from steadyflow.denoisers import Denoiser
from steadyflow.diffusers.pipeline_model import PipelineModel
from steadyflow.errors import CorruptFileError, InputError
from steadyflow.jacobians import FlowMap
from steadyflow.loading import apply_condition, fingerprint, takes_prompts
from steadyflow.metrics import rmse
from steadyflow.metrics.statistics import Estimate, pearson, spearman, wilson
from steadyflow.noise import PERTURBATION, like
from steadyflow.runs.engines import InProcess
from steadyflow.solvers import registry
from steadyflow.tasks import invert

from ..cached_results import cached_results
from .correlations import batches, median


@dataclass(frozen=True)
class Settings:
    """How round trips are made, and what is measured."""

    solver: str = "euler"
    steps: int = 500
    grid: str = "uniform"
    """A name of `steadyflow.grids`, or "own" for the times at which the pipeline itself would step."""
    guidance: float = 1.0
    """The scale of guidance, the same both ways."""
    directions: int = 2
    """Random directions in which each latent is perturbed."""
    perturbation: float = 0.02
    """The root mean square of a perturbation, where latents have 1."""
    batch_size: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """What is measured of one picture."""

    name: str
    latent_error: float
    """Root mean square of the reconstructed latent less the picture's; of a model without a codec, of the picture."""
    image_error: float
    """That of the decoded reconstruction less the picture, on [-1, 1]."""
    floor: float
    """That of the decoded latent less the picture: what the codec loses by itself."""
    beyond: float
    """That of the decoded reconstruction less the decoded latent: what the round trip adds to it."""
    coefficients: list[float]
    """The instability coefficient along each random direction."""

    @property
    def coefficient(self) -> float:
        """The mean over the directions."""
        return sum(self.coefficients) / len(self.coefficients)


@dataclass(frozen=True)
class Result:
    """All pictures of an experiment."""

    settings: Settings
    rows: list[Row]
    linear: list[float]
    """By how much the coefficient changes, relatively, for a quarter and for four times the perturbation; medians."""
    dim: int
    """The number of dimensions of a latent."""


def pictures(folder: str | Path, n: int | None) -> list[Path]:
    """List the first n pictures of a folder by name. Raises `InputError` for fewer than three."""
    found = arrays.pictures(folder)[:n]
    if len(found) < 3:
        raise InputError(f"images: {len(found)} of {folder}; correlations need at least 3")
    return found


def captions(file: str | Path, names: Sequence[str]) -> list[str]:
    """Read the captions of pictures, by file name.

    file: JSON, either {name: caption} or with MSCOCO's "images" and "annotations" (of several for a picture the one of
    least id is taken); or text, with a name, a tab and a caption in each line.

    Raises `CorruptFileError` for anything else, and `InputError` naming the pictures that have no caption.
    """
    path = Path(file)
    text = files.read_text(path, 2**30)
    try:
        known = _of_json(strict_json.loads(text)) if path.suffix.lower() == ".json" else _of_lines(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path}: no captions that can be read ({error!r})") from error
    missing = [name for name in names if not known.get(name)]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(f"captions: {path} has none for {shown}; give --no-captions to go without any")
    return [known[name] for name in names]


def _of_json(data: Any) -> dict[str, str]:
    if "annotations" not in data:
        return {str(name): _words(caption) for name, caption in data.items()}
    names = {image["id"]: image["file_name"] for image in data["images"]}
    found: dict[str, str] = {}
    for entry in sorted(data["annotations"], key=lambda entry: entry["id"]):
        found.setdefault(names[entry["image_id"]], _words(entry["caption"]))
    return found


def _of_lines(text: str) -> dict[str, str]:
    pairs = [line.split("\t", 1) for line in text.splitlines() if line.strip()]
    return {name.strip(): _words(caption) for name, caption in pairs}


def _words(caption: Any) -> str:
    if not isinstance(caption, str):
        raise TypeError(f"a caption is {caption!r}")
    return caption.strip()


def _content(path: Path) -> str:
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def run(
    model: Denoiser,
    paths: Sequence[Path],
    given: Sequence[str] | str | None = None,
    settings: Settings | None = None,
    *,
    folder: str | Path | None = None,
    progress: Callable[[], None] | None = None,
) -> Result:
    """Invert and reconstruct the pictures, and measure errors and instability coefficients.

    given: a caption for each picture, one for all, or None for the model's condition as it is. folder: where each
    batch is kept as it comes, and found by the next call. progress: called for each picture that is done.
    """
    settings = settings or Settings()
    registry.get(settings.solver)
    if settings.directions < 1 or settings.batch_size < 1 or not settings.perturbation > 0.0:
        raise InputError("reconstruction: directions, batch size and perturbation must be positive")
    if given is not None and not takes_prompts(model):
        raise InputError(f"captions: the model {model.name!r} takes none; give --no-captions")
    dtype = str(getattr(model, "dtype", None))
    stamp = {
        **dataclasses.asdict(settings),
        "model": fingerprint(model),
        "dtype": dtype,
        "shape": list(model.shape or ()),
    }

    def about(part: tuple[int, int]) -> dict[str, Any]:
        """Say what decides the numbers of a batch: its own pictures, by their bytes, and captions."""
        chosen = paths[slice(*part)]
        words = given if given is None or isinstance(given, str) else list(given[slice(*part)])
        return {**stamp, "pictures": [_content(path) for path in chosen], "captions": words}

    ranges = batches(len(paths), settings.batch_size)
    first = [("cells/reconstruction-linear", ranges[0])]
    check = partial(_linear, model, paths, given, settings)
    (_, linear), *_ = cached_results(InProcess(), check, first, folder, about, lambda data: Linear(**data))
    cells = [(f"cells/reconstruction-{start:05d}", (start, stop)) for start, stop in ranges]
    work = partial(_batch, model, paths, given, settings)
    rows: dict[int, list[Row]] = {}
    for k, found in cached_results(InProcess(), work, cells, folder, about, lambda data: [Row(**row) for row in data]):
        rows[k] = found
        if progress is not None:
            for _ in found:
                progress()
    dim = torch.Size(model.shape or ()).numel()
    return Result(settings, [row for k in range(len(ranges)) for row in rows[k]], linear.changes, dim)


@dataclass(frozen=True)
class Linear:
    """By how much the coefficient changes for a quarter and for four times the perturbation."""

    changes: list[float]


def _open(
    model: Denoiser, paths: Sequence[Path], given: Sequence[str] | str | None, settings: Settings, rows: tuple[int, int]
) -> tuple[Denoiser, Tensor, Tensor, Any]:
    """Give the model under the captions, the pictures, their latents, and the grid."""
    shape = getattr(model, "image_shape", None) or model.shape
    if shape is None:
        raise InputError(f"model: the shape of the samples of {model.name!r} is not known")
    images = torch.cat([arrays.read(path, shape, resize=True) for path in paths[slice(*rows)]])
    words = given if given is None or isinstance(given, str) else list(given[slice(*rows)])
    under = apply_condition(model, None if isinstance(words, str) else words, words if isinstance(words, str) else None)
    if settings.guidance != 1.0:
        under = under.with_guidance(settings.guidance)
    x = model.encode(images) if isinstance(model, PipelineModel) else images.to(_home(model))
    return under, images, x, _grid(model, settings)


def _grid(model: Denoiser, settings: Settings) -> Any:
    if settings.grid != "own":
        return settings.grid
    if not isinstance(model, PipelineModel):
        raise InputError("grid: 'own' is for pipelines")
    return model.own_grid(settings.steps)


def _home(model: Denoiser) -> torch.device:
    net = model.net
    return next(net.parameters()).device if isinstance(net, torch.nn.Module) else torch.device("cpu")


def _batch(
    model: Denoiser, paths: Sequence[Path], given: Sequence[str] | str | None, settings: Settings, rows: tuple[int, int]
) -> list[Row]:
    """Measure the pictures of a batch."""
    under, images, x, grid = _open(model, paths, given, settings, rows)
    inversion, generation = _invert(under, x, grid, settings)
    back = inversion.decode(progress=False).x
    decode = model.decode if isinstance(model, PipelineModel) else lambda x: x
    decoded, plain = (decode(y).float().cpu() for y in (back, x))
    along = torch.stack(
        [
            _coefficient(generation, inversion.latent, settings, k, rows[0], settings.perturbation)
            for k in range(settings.directions)
        ],
        1,
    )
    columns = [rmse(back, x), rmse(decoded, images), rmse(plain, images), rmse(decoded, plain)]
    lists = [[float(v) for v in column.tolist()] for column in columns]
    names = [path.name for path in paths[slice(*rows)]]
    return [
        Row(name, *values, coefficients=[float(v) for v in e])
        for name, *values, e in zip(names, *lists, along.tolist(), strict=True)
    ]


def _linear(
    model: Denoiser, paths: Sequence[Path], given: Sequence[str] | str | None, settings: Settings, rows: tuple[int, int]
) -> Linear:
    """Compare sizes of perturbation on the first batch."""
    under, _, x, grid = _open(model, paths, given, settings, rows)
    inversion, generation = _invert(under, x, grid, settings)
    found = [
        _coefficient(generation, inversion.latent, settings, 0, 0, factor * settings.perturbation)
        for factor in (0.25, 1.0, 4.0)
    ]
    return Linear([float((found[k] / found[1] - 1.0).median()) for k in (0, 2)])


def _invert(model: Denoiser, x: Tensor, grid: Any, settings: Settings) -> tuple[Any, FlowMap]:
    steps = None if settings.grid == "own" else settings.steps
    inversion = invert(model, x, solver=settings.solver, grid=grid, steps=steps, progress=False)
    return inversion, FlowMap(model, inversion.grid.reversed(), inversion.solver)


def _coefficient(generation: FlowMap, z: Tensor, settings: Settings, k: int, first: int, size: float) -> Tensor:
    """Give E of each latent along its k-th direction, by a central difference over a perturbation, shape (B,)."""
    u = like(z, settings.seed + k, PERTURBATION, (0, 2, 0), range(first, first + len(z)))
    step = unit(u) * (size * z[0].numel() ** 0.5)
    return norm(generation(z + step) - generation(z - step)) / (2.0 * norm(step))


def summary(result: Result) -> dict[str, Estimate]:
    """Give medians and correlations with 95 % intervals, by name."""
    column = {name: torch.tensor([getattr(row, name) for row in result.rows], dtype=torch.float64) for name in COLUMNS}
    e = column["coefficient"]
    found = {f"median {name.replace('_', ' ')}": median(values) for name, values in column.items()}
    found["share with E > 1"] = wilson(int((e > 1.0).sum()), len(e))
    for name in ("latent_error", "beyond", "image_error"):
        words = name.replace("_", " ")
        found[f"rank correlation of E with {words}"] = spearman(e, column[name])
        found[f"correlation of ln E with ln {words}"] = pearson(e.log(), column[name].log())
    return found


COLUMNS = ("coefficient", "latent_error", "image_error", "floor", "beyond")


def as_json(result: Result, **facts: Any) -> dict[str, Any]:
    """Give all that was measured, JSON-able."""
    return {
        **facts,
        "settings": dataclasses.asdict(result.settings),
        "linear": result.linear,
        "summary": {name: dataclasses.asdict(e) for name, e in summary(result).items()},
        "rows": [dataclasses.asdict(row) for row in result.rows],
    }


def note(result: Result) -> str:
    """Say whether the perturbation is within the linear regime."""
    smaller, larger = result.linear
    text = (
        f"A quarter of the perturbation ({result.settings.perturbation:g}) changes the coefficient by {smaller:+.1%}, "
        f"four times as much by {larger:+.1%} (medians of the first batch)"
    )
    if max(abs(smaller), abs(larger)) < 0.05:
        return f"{text}: it is within the linear regime."
    return f"{text}: it is at the edge of the linear regime or beyond; try another size."
