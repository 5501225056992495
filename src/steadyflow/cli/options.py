"""What the commands share: each option once, and how figures are printed.

The options are the words of the verbs (`steadyflow.Options`). One that is not given is None, and the verb's own default
applies.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from . import completion

Model = Annotated[
    str,
    typer.Option(
        help="A bundled model ('digits', 'ink'), 'mixture' (25 exact modes), one that an installed package adds, a "
        "saved .safetensors model, a diffusers pipeline (its folder, or its name on the hub), or module:function of "
        "your own.",
        autocompletion=completion.models,
    ),
]
Call = Annotated[
    list[str] | None,
    typer.Option(
        help="An argument of a pipeline's call, as NAME=VALUE: height=512, num_frames=33, image=picture.png. May be "
        "given several times."
    ),
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...", autocompletion=completion.device)]
Double = Annotated[bool, typer.Option("--double", help="Work in float64 instead of float32.")]

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        "--image",
        "--video",
        help="A picture, a video or a sound, as the model takes them, a folder of them, .npy or .safetensors; by "
        "default the model's own held-out data.",
    ),
]
Resize = Annotated[
    bool, typer.Option("--resize", help="Scale pictures to the model's size, and resample sounds to its rate.")
]
Frames = Annotated[
    str | None,
    typer.Option(
        help="Which frames of videos to take: start:stop or start:stop:stride; the first ones. Or chunks: all of one "
        "film, as consecutive samples of the model's length, which --out joins again.",
        autocompletion=completion.one_of("chunks"),
    ),
]
Number = Annotated[
    int | None,
    typer.Option("--n", help="How many samples; of an input, at most so many of it. All of an input, else 16."),
]
Label = Annotated[int | None, typer.Option(help="The class to condition on; of held-out data, also which of them.")]
Prompt = Annotated[str | None, typer.Option(help="The prompt of a text-to-image pipeline.")]

Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance on the way to data; the model's own, 1, is none."),
]
SourceGuidance = Annotated[
    float | None,
    typer.Option(
        help="The same on the way up, from data to noise; the model's own, 1, is none, and below it smoother."
    ),
]

Solver = Annotated[
    str | None,
    typer.Option(
        help="A solver's name (see `steadyflow solvers`), the file of a tuned one (.json), or auto, which tries a few "
        "on the first samples. ees25, but for methods of editing with one of their own.",
        autocompletion=completion.solver_or_auto,
    ),
]
Coordinates = Annotated[
    str | None,
    typer.Option(
        help="flow, noise or data, for Runge-Kutta solvers and Rex; the solver's own.",
        autocompletion=completion.coordinates,
    ),
]
Steps = Annotated[int | None, typer.Option(help="Solver steps each way, instead of --nfe.")]
Nfe = Annotated[int | None, typer.Option(help="Model evaluations each way; 48.")]
Grid = Annotated[
    str | None,
    typer.Option(
        help="uniform, quadratic, log-snr, polyexponential, karras, kl-optimal, beta, sgm-uniform, linear-quadratic, "
        "bong-tangent, ays-sd15, ays-sdxl or ays-svd; with options as in karras:rho=5 or beta:alpha=0.5,beta=0.7. "
        "quadratic, but for methods of editing as above.",
        autocompletion=completion.grid,
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How far up the path to go, as a share of it, in (0, 1]; less keeps more. All the way, but for methods "
        "of editing with a share of their own."
    ),
]
TimeMin = Annotated[float | None, typer.Option("--t-min", help="The path time at the clean end; the path's own.")]
TimeMax = Annotated[float | None, typer.Option("--t-max", help="The path time at the noisy end; the path's own.")]
Seed = Annotated[int | None, typer.Option(help="Of the noise that is drawn; 0.")]
Index = Annotated[int | None, typer.Option(help="The index of the first sample, which addresses its noise; 0.")]
Noise = Annotated[
    str | None,
    typer.Option(
        help="For stochastic solvers, brownian (one path for all grids, the default) or white.",
        autocompletion=completion.one_of("brownian", "white"),
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="How many samples are computed together; 64.")]

Out = Annotated[
    Path | None,
    typer.Option(
        help="Where to write the samples: .npy, .safetensors, a picture (a sheet), a video, a sound, or a folder with "
        "a picture, a folder of frames or a sound for each."
    ),
]
Folder = Annotated[Path | None, typer.Option(help="A folder for the report.")]
Save = Annotated[Path | None, typer.Option(help="Where to save the inversion, to decode or edit it later.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]

Run = Annotated[
    Path | None,
    typer.Option(help="A folder to work in: in shards, resumable by the same command, on one core unless --engine."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="With --run, 'local', or 'ray' for all cores or a cluster.",
        autocompletion=completion.one_of("local", "ray"),
    ),
]
Address = Annotated[str | None, typer.Option(help="With --engine ray, the cluster, such as 'auto'.")]
Workers = Annotated[int | None, typer.Option(help="With --engine ray, at most so many workers.")]
Shard = Annotated[int | None, typer.Option(help="With --run, samples per file, a multiple of --batch-size.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="With --run, stop at the first sample that cannot be computed, instead of finishing without it.",
    ),
]
CheckInputs = Annotated[
    str | None,
    typer.Option(
        help="With --run, how inputs are compared with those that the run began with: content (the default), by "
        "hashes of all of it; or times, by names, sizes and times alone.",
        autocompletion=completion.one_of("content", "times"),
    ),
]
RecomputeChanged = Annotated[
    bool,
    typer.Option(
        "--recompute-changed",
        help="With --run, compute again what comes from inputs that have changed, instead of refusing them.",
    ),
]
ModelVersion = Annotated[
    str | None,
    typer.Option(help="With --run, a name of your own for the model as it is, where parts of it cannot be hashed."),
]


def given(**words: Any) -> dict[str, Any]:
    """The words that were given: those that are not None, and switches that are on."""
    return {name: value for name, value in words.items() if value is not None and value is not False}


def call_of(pairs: list[str] | None) -> dict[str, str] | None:
    """Arguments of a pipeline's call by name.

    Args:
        pairs: Each as NAME=VALUE.

    Raises:
        InputError: One is not, or a name is given twice.
    """
    from ..errors import InputError

    found: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"call: got {pair!r}, expected NAME=VALUE, such as height=512")
        if name in found:
            raise InputError(f"call: {name} is given twice")
        found[name] = value
    return found or None


def solver_spec(solver: str | None, coordinates: str | None, default: str | None = None) -> str | dict[str, Any] | None:
    """The solver as a job takes it.

    Args:
        solver: Its name, if it was given.
        coordinates: Those that were asked for, if any.
        default: The name where none was given; the one of all verbs by default.

    Raises:
        InputError: The solver takes no coordinates.
    """
    if coordinates is None:
        return solver
    from .. import solvers
    from ..errors import InputError
    from ..tasks._options import DEFAULT_SOLVER

    if solver == "auto":
        raise InputError("coordinates: solver 'auto' chooses them")
    return solvers.get(solver or default or DEFAULT_SOLVER, coordinates=coordinates).spec()


def condition(model: Any, name: str, given: str | None) -> int | str | None:
    """A class as a number, or a prompt.

    Args:
        model: The model that it is for.
        name: What the option is called.
        given: What was given, if anything.

    Raises:
        InputError: The model takes classes, and it is none.
    """
    from ..errors import InputError
    from ..loading import takes_prompts

    if given is None or takes_prompts(model):
        return given
    try:
        return int(given)
    except ValueError:
        raise InputError(f"{name}: got {given!r}, but {model.name!r} takes classes, which are numbers") from None


def count_samples(
    model: Any, path: str | None, n: int | None, resize: bool, label: Any, frames: str | None = None
) -> int:
    """How many samples a job is about: at most n of what there is; the other words are those of `open_source`."""
    from ..datasets.sources import open_source

    return len(open_source(model, path, n, resize, label if isinstance(label, int) else None, frames))


def check_place(name: str, path: Path | None, *, folder: bool = False) -> None:
    """Check, before the work, that what an option names can be written.

    Args:
        name: What the option is called.
        path: What was given, if anything.
        folder: Whether it is a folder.

    Raises:
        InputError: It cannot.
    """
    from .._internal.places import check_writable

    if path is not None:
        check_writable(path, name, folder=folder)


def print_json(value: Any) -> None:
    """Print a value as JSON; numbers that are not finite become null."""
    from .._internal import strict_json

    typer.echo(strict_json.dumps(strict_json.plain(value), indent=2))


def print_figures(figures: dict[str, Any], as_json: bool, out: Path | None) -> None:
    """Print named figures, as lines or as JSON.

    Args:
        figures: By their names.
        as_json: Whether as JSON.
        out: What has been written, if anything.
    """
    if as_json:
        print_json(figures)
        return
    width = max(map(len, [*figures, "" if out is None else "written to"]))
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
    """A progress bar at a terminal, as a function to call with what has been done."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, leave=False, disable=None) as shown:

        def advance(name: str) -> None:
            shown.set_description(name)
            shown.update()

        yield advance
