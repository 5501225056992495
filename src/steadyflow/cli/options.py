"""What the commands share: their options, and how they read input and print figures."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError

Model = Annotated[
    str,
    typer.Option(
        help="A bundled model ('digits', 'faces', 'ink'), 'mixture' (25 exact modes), a saved .safetensors model, or a "
        "diffusers pipeline: its folder, or its name on the hub."
    ),
]
SolverName = Annotated[str, typer.Option(help="A solver's name; see `steadyflow solvers`.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps.")]
Nfe = Annotated[int | None, typer.Option(help="Model evaluations each way, instead of --steps.")]
GridName = Annotated[str, typer.Option(help="uniform, quadratic, log-snr or karras.")]
Variable = Annotated[str | None, typer.Option(help="flow, noise or data, for Runge-Kutta solvers and Rex.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
Out = Annotated[Path | None, typer.Option(help="Where to write: .png, .npy or .safetensors.")]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", "--image", help="A picture, .npy or .safetensors; by default the model's own held-out data."
    ),
]
Prompt = Annotated[str | None, typer.Option(help="What a text-to-image pipeline is told.")]
Resize = Annotated[bool, typer.Option("--resize", help="Scale the picture to the model's size.")]
Label = Annotated[int | None, typer.Option(help="The class to condition on.")]
Number = Annotated[int, typer.Option("--n", help="How many samples.")]
BatchSize = Annotated[int | None, typer.Option(help="How many at a time.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")]


def load_model(name: str) -> Any:
    """A bundled model, a saved one, the exact mixture of 25 modes, or a model over a diffusers pipeline."""
    from ..denoisers import GaussianMixture
    from ..models import load, pipeline_folder
    from ..schedules import VPLinear

    if name == "mixture":
        return GaussianMixture.grid().denoiser(VPLinear())
    folder = pipeline_folder(name) if name == "ink" else Path(name)
    if folder.is_dir() or ("/" in name and folder.suffix != ".safetensors"):
        from ..adapters.pipelines import load_pipeline

        found = load_pipeline(folder if folder.is_dir() else name)
        return dataclasses.replace(found, name="ink") if name == "ink" else found
    return load(name)


def takes_prompts(model: Any) -> bool:
    """Whether conditions are words."""
    return getattr(model, "embed", None) is not None


def to_images(model: Any, x: Any) -> Any:
    """Latents as images, where the model works on latents."""
    return model.decode(x) if hasattr(model, "decode") else x


def conditioned(model: Any, label: Any, guidance: float, prompt: str | None = None) -> Any:
    """The model under a class or a prompt, if one is given, and guidance."""
    if prompt is not None:
        if not takes_prompts(model):
            raise InputError(f"prompt: the model {model.name!r} takes none; give --label")
        return model.condition(prompt).guided(guidance)
    if takes_prompts(model):
        if isinstance(label, int):
            raise InputError("label: this model takes words; give --prompt")
        return (model if label is None else model.condition(label)).guided(guidance)
    if label is None:
        if guidance != 1.0:
            raise InputError("guidance: needs a class to guide to; give --label")
        return model
    return model.condition(label).guided(guidance)


def make_solver(name: str, variable: str | None) -> Any:
    """A solver by name, in a variable if one is given."""
    from ..solvers import get

    return get(name) if variable is None else get(name, variable=variable)


def count_steps(solver: Any, steps: int | None, nfe: int | None, default: int) -> int:
    """The number of steps, from whichever of --steps and --nfe is given."""
    if steps is not None and nfe is not None:
        raise InputError("steps: give --steps or --nfe, not both")
    if nfe is None:
        return default if steps is None else steps
    from ..solvers.base import steps_for

    return steps_for(solver, nfe)


def read_input(model: Any, path: str | None, n: int, resize: bool, label: int | None) -> tuple[Any, Any]:
    """The user's batch, or held-out data of a model we know, with the labels or captions to invert under.

    Images are encoded where the model works on latents; a file of latents is taken as it is.
    """
    from .. import arrays

    if path is not None and hasattr(model, "encode") and Path(path).suffix.lower() not in (".npy", ".safetensors"):
        return model.encode(arrays.read(path, model.image_shape, resize=resize)), label
    if path is not None:
        return arrays.read(path, model.shape, resize=resize), label
    if model.name == "ink":
        import torch

        from ..datasets import ink

        pictures = ink("held-out", n, torch.Generator().manual_seed(0))
        return model.encode(pictures.images), [pictures.caption(k) for k in range(n)]
    if model.name in ("digits", "faces"):
        from .. import datasets

        images, labels = getattr(datasets, model.name)("held-out")
        if label is not None:
            images, labels = images[labels == label], labels[labels == label]
        return images[:n], labels[:n]
    if model.name == "mixture":
        return model.mixture.sample(n), label
    raise InputError("input: this model has no data of its own; give --input")


def tell(figures: dict[str, Any], as_json: bool, out: Path | None) -> None:
    """Print named figures, as lines or as JSON."""
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        typer.echo(f"{name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
    if out is not None:
        typer.echo(f"{'written to':<{width}}  {out}")


def table(heads: list[str], rows: list[list[str]], left: tuple[int, ...]) -> str:
    """A table as text; the columns in `left` are set to the left."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: list[str]) -> str:
        parts = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(parts).rstrip()

    return "\n".join([line(heads), line(["-" * w for w in widths]), *map(line, rows)])
