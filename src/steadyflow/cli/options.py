"""What the commands share: their options, and how they read input and print figures."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError

Model = Annotated[
    str,
    typer.Option(
        help="A bundled model ('digits', 'faces', 'ink'), 'mixture' (25 exact modes), a saved .safetensors model, a "
        "diffusers pipeline (its folder, or its name on the hub), or module:function of your own."
    ),
]
SolverName = Annotated[str, typer.Option(help="A solver's name; see `steadyflow solvers`.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps.")]
Nfe = Annotated[int | None, typer.Option(help="Model evaluations each way, instead of --steps.")]
GridName = Annotated[str, typer.Option(help="uniform, quadratic, log-snr or karras.")]
Coordinates = Annotated[str | None, typer.Option(help="flow, noise or data, for Runge-Kutta solvers and Rex.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
Out = Annotated[Path | None, typer.Option(help="Where to write: .png, .npy or .safetensors.")]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        "--image",
        help="A picture, a folder of them, .npy or .safetensors; by default the model's own held-out data.",
    ),
]
Prompt = Annotated[str | None, typer.Option(help="What a text-to-image pipeline is told.")]
Resize = Annotated[bool, typer.Option("--resize", help="Scale the picture to the model's size.")]
Double = Annotated[bool, typer.Option("--double", help="Work in float64 instead of float32.")]
Label = Annotated[int | None, typer.Option(help="The class to condition on.")]
Number = Annotated[int, typer.Option("--n", help="How many samples.")]
BatchSize = Annotated[int | None, typer.Option(help="How many at a time.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")]


def to_images(model: Any, x: Any) -> Any:
    """Latents as images, where the model works on latents."""
    return model.decode(x) if hasattr(model, "decode") else x


def make_solver(name: str, coordinates: str | None) -> Any:
    """A solver by name, in a variable if one is given."""
    from ..solvers import get

    return get(name) if coordinates is None else get(name, coordinates=coordinates)


def count_steps(solver: Any, steps: int | None, nfe: int | None, default: int) -> int:
    """The number of steps, from whichever of --steps and --nfe is given."""
    if steps is not None and nfe is not None:
        raise InputError("steps: give --steps or --nfe, not both")
    if nfe is None:
        return default if steps is None else steps
    from ..solvers.base import steps_for

    return steps_for(solver, nfe)


def read_input(model: Any, path: str | None, n: int | None, resize: bool, label: int | None) -> tuple[Any, Any]:
    """The user's batch, or n samples of held-out data, with the labels or captions to invert under."""
    from ..datasets.sources import open_source

    source = open_source(model, path, n if path is None else None, resize, label)
    return source.rows(0, len(source))


def count_samples(model: Any, path: str | None, n: int | None, resize: bool, label: int | None) -> int:
    """How many samples a run is about: at most n of what there is."""
    from ..datasets.sources import open_source

    return len(open_source(model, path, n, resize, label))


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


@contextmanager
def bar(unit: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A progress bar at a terminal, as a function that is told what is done."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, leave=False, disable=None) as shown:

        def tell(name: str) -> None:
            shown.set_description(name)
            shown.update()

        yield tell
