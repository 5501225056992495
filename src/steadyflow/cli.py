"""The command line: `steadyflow sample | roundtrip | edit | solvers | demo`.

Errors that steadyflow raises on purpose are told in one line, with exit status 1; `--debug` before the command
shows where they came from.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ._version import __version__
from .errors import InputError, SteadyflowError

app = typer.Typer(
    name="steadyflow",
    help="Sample, invert, reconstruct and edit diffusion and flow models, stably.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str,
    typer.Option(help="A bundled model ('digits'), 'mixture' (25 exact modes), or a saved .safetensors model."),
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
    str | None, typer.Option(help="A picture, .npy or .safetensors; by default the model's own held-out data.")
]
Resize = Annotated[bool, typer.Option("--resize", help="Scale the picture to the model's size.")]
Label = Annotated[int | None, typer.Option(help="The class to condition on.")]
Number = Annotated[int, typer.Option("--n", help="How many samples.")]
BatchSize = Annotated[int | None, typer.Option(help="How many at a time.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"steadyflow {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: steadyflow sample --n 64 --label 7 --guidance 2 --out sevens.png")
def sample(
    model: Model = "digits",
    n: Number = 16,
    label: Label = None,
    guidance: Guidance = 1.0,
    solver: SolverName = "ddim",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    variable: Variable = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Draw samples from a model."""
    from . import arrays
    from .tasks import sample as draw

    method = _solver(solver, variable)
    drawn = draw(
        _conditioned(_model(model), label, guidance),
        n=n,
        solver=method,
        steps=_steps(method, steps, nfe, 50),
        grid=grid,
        seed=seed,
        batch_size=batch_size,
    )
    if out is not None:
        arrays.write(out, drawn.x)
    figures = {
        "solver": method.name,
        "samples": n,
        "steps": drawn.steps,
        "nfe": drawn.nfe,
        "mean": drawn.x.mean().item(),
        "std": drawn.x.std().item(),
        "max |x|": drawn.x.abs().max().item(),
    }
    _tell(figures, as_json, out)


@app.command(epilog="Example: steadyflow roundtrip --input seven.png --label 7 --solver ees25 --nfe 48 --out back.png")
def roundtrip(
    model: Model = "digits",
    input: Input = None,
    n: Number = 16,
    label: Label = None,
    guidance: Guidance = 1.0,
    solver: SolverName = "ees25",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    variable: Variable = None,
    resize: Resize = False,
    batch_size: BatchSize = None,
    out: Out = None,
    save: Annotated[Path | None, typer.Option(help="Where to save the inversion, to decode it later.")] = None,
    as_json: Json = False,
) -> None:
    """Invert samples, generate them again, and say how well they came back."""
    from . import arrays
    from .metrics import rmse
    from .tasks import invert

    denoiser = _model(model)
    x, labels = _input(denoiser, input, n, resize, label)
    method = _solver(solver, variable)
    inversion = invert(
        _conditioned(denoiser, labels, guidance),
        x,
        solver=method,
        steps=_steps(method, steps, nfe, 16),
        grid=grid,
        batch_size=batch_size,
    )
    if save is not None:
        inversion.save(save)
    back = inversion.decode(batch_size=batch_size)
    if out is not None:
        arrays.write(out, back.x)
    error = rmse(back.x, x)
    figures = {
        "solver": method.name,
        "samples": len(x),
        "steps each way": inversion.steps,
        "nfe each way": inversion.nfe,
        "error median": error.median().item(),
        "error p95": error.quantile(0.95).item(),
        "error max": error.max().item(),
        "latent std": inversion.latent.std(correction=0).item(),
        "max |x|": back.x.abs().max().item(),
    }
    _tell(figures, as_json, out)


@app.command(epilog="Example: steadyflow edit --input three.png --source 3 --target 8 --guidance 3 --out eight.png")
def edit(
    target: Annotated[int, typer.Option(help="The class to move to.")],
    model: Model = "digits",
    input: Input = None,
    n: Number = 16,
    source: Annotated[int | None, typer.Option(help="The class of the input, if known.")] = None,
    guidance: Guidance = 3.0,
    strength: Annotated[float, typer.Option(help="How far up to invert, in (0, 1]; less keeps more.")] = 1.0,
    solver: SolverName = "ees25",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    variable: Variable = None,
    resize: Resize = False,
    batch_size: BatchSize = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Move samples to another class: invert under the source, generate under the target."""
    from . import arrays
    from .tasks import edit as change

    denoiser = _model(model)
    x, labels = _input(denoiser, input, n, resize, source)
    method = _solver(solver, variable)
    result = change(
        denoiser,
        x,
        target,
        source=labels,
        guidance=guidance,
        strength=strength,
        solver=method,
        steps=_steps(method, steps, nfe, 16),
        grid=grid,
        batch_size=batch_size,
    )
    if out is not None:
        arrays.write(out, result.x)
    figures = {
        "solver": method.name,
        "samples": len(x),
        "steps each way": result.steps,
        "nfe": result.nfe,
        "distance median": result.distance.median().item(),
        "max |x|": result.x.abs().max().item(),
    }
    if denoiser.name == "digits":
        from .lab.digits import recognise

        figures["recognised as target"] = (recognise(result.x) == target).float().mean().item()
    _tell(figures, as_json, out)


@app.command(epilog="Example: steadyflow solvers --plot regions.png --names ees25,rex-euler")
def solvers(
    plot: Annotated[Path | None, typer.Option(help="Draw the stability regions into this file.")] = None,
    names: Annotated[str | None, typer.Option(help="Which to draw, separated by commas.")] = None,
    as_json: Json = False,
) -> None:
    """List the solvers with their facts, or draw their stability regions."""
    from . import solvers as registry

    if plot is not None:
        from .diagnostics import stability

        plot.parent.mkdir(parents=True, exist_ok=True)
        stability.figure(names.split(",") if names else None).savefig(plot, dpi=120)
        typer.echo(f"written to {plot}")
        return

    facts = {name: dataclasses.asdict(registry.get(name).facts) for name in registry.names()}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    heads = ["solver", "order", "nfe/step", "inverse", "order back", "stochastic", "stable on", "source"]
    rows = [
        [
            name,
            str(f["order"]),
            str(f["evaluations"] or "until converged"),
            f["inverse"],
            "-" if f["antisymmetric_order"] is None else str(f["antisymmetric_order"]),
            "yes" if f["stochastic"] else "no",
            "-" if f["real_interval"] is None else f"[-{f['real_interval']:.3f}, 0]",
            f["source"],
        ]
        for name, f in facts.items()
    ]
    typer.echo(_table(heads, rows, left=(0, 3, 5, 7)))


@app.command(epilog="Example: steadyflow demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("demo"),
    n: Number = 100,
    as_json: Json = False,
) -> None:
    """Invert, reconstruct and edit real held-out digits with five solvers; print a table, write a report."""
    from tqdm import tqdm

    from .lab import demo as lab
    from .lab import report

    with tqdm(total=len(lab.SOLVERS) * len(lab.BUDGETS), unit="setting", leave=False, disable=None) as bar:

        def tell(setting: str) -> None:
            bar.set_description(setting)
            bar.update()

        result = lab.study(n, progress=tell)
    path = report.write(result, out / "report.html")
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in result.rows], indent=2))
        return
    typer.echo(_table(*lab.table(result), left=(0,)))
    typer.echo(
        f"\nerror: rms of reconstruction less source, on [-1, 1]; edited: share recognised as the target digit;\n"
        f"kept: median distance of the edit from its source; nfe: evaluations each way.\n"
        f"{n} held-out digits, {result.seconds:.0f} s. Report: {path}"
    )


lab_app = typer.Typer(help="Experiments; each prints a table and writes a picture.", no_args_is_help=True)
app.add_typer(lab_app, name="lab")


@lab_app.command("coupling", epilog="Example: steadyflow lab coupling --problem digits --out lab")
def lab_coupling(
    problem: Annotated[str, typer.Option(help="'mixture' (16-dimensional, exact) or 'digits'.")] = "mixture",
    n: Number = 64,
    nfe: Annotated[int, typer.Option(help="Model evaluations each way.")] = 48,
    grid: GridName = "quadratic",
    out: Annotated[Path, typer.Option(help="The folder for the picture.")] = Path("lab"),
    as_json: Json = False,
) -> None:
    """Exact reversibility against stability: edits at rising guidance, fixed and automatic coupling."""
    from matplotlib.figure import Figure
    from tqdm import tqdm

    from .lab import coupling

    with tqdm(total=len(coupling.METHODS), unit="method", leave=False, disable=None) as bar:

        def tell(_: str) -> None:
            bar.update()

        rows = coupling.study(problem, n=n, nfe=nfe, grid=grid, progress=tell)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    coupling.draw(rows, figure.subplots())
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"coupling-{problem}.png", dpi=120)
    typer.echo(_table(*coupling.table(rows), left=(0, 1)))
    typer.echo(f"\nPicture: {out / f'coupling-{problem}.png'}")


def _model(name: str) -> Any:
    from .denoisers import GaussianMixture
    from .models import load
    from .schedules import VPLinear

    return GaussianMixture.grid().denoiser(VPLinear()) if name == "mixture" else load(name)


def _conditioned(model: Any, label: Any, guidance: float) -> Any:
    if label is None:
        if guidance != 1.0:
            raise InputError("guidance: needs a class to guide to; give --label")
        return model
    return model.condition(label).guided(guidance)


def _solver(name: str, variable: str | None) -> Any:
    from .solvers import get

    return get(name) if variable is None else get(name, variable=variable)


def _steps(solver: Any, steps: int | None, nfe: int | None, default: int) -> int:
    if steps is not None and nfe is not None:
        raise InputError("steps: give --steps or --nfe, not both")
    if nfe is None:
        return default if steps is None else steps
    from .solvers.base import steps_for

    return steps_for(solver, nfe)


def _input(model: Any, path: str | None, n: int, resize: bool, label: int | None) -> tuple[Any, Any]:
    """The user's batch, or held-out data of a model we know, with the labels to invert under."""
    from . import arrays

    if path is not None:
        return arrays.read(path, model.shape, resize=resize), label
    if model.name == "digits":
        from .datasets import digits

        images, labels = digits("held-out")
        if label is not None:
            images, labels = images[labels == label], labels[labels == label]
        return images[:n], labels[:n]
    if model.name == "mixture":
        return model.mixture.sample(n), label
    raise InputError("input: this model has no data of its own; give --input")


def _tell(figures: dict[str, Any], as_json: bool, out: Path | None) -> None:
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        typer.echo(f"{name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
    if out is not None:
        typer.echo(f"{'written to':<{width}}  {out}")


def _table(heads: list[str], rows: list[list[str]], left: tuple[int, ...]) -> str:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: list[str]) -> str:
        parts = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(parts).rstrip()

    return "\n".join([line(heads), line(["-" * w for w in widths]), *map(line, rows)])


def main() -> None:
    """Run the command line; the entry point `steadyflow`."""
    try:
        app()
    except (SteadyflowError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
