"""The command line: `steadyflow sample | invert | roundtrip | edit | diagnose | solvers | demo | lab | runs`.

Errors that steadyflow raises on purpose are told in one line, with exit status 1; `--debug` before the command
shows where they came from.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from steadyflow_lab.cli import lab

from .._version import __version__
from ..errors import InputError, SteadyflowError
from .edit import edit
from .options import (
    BatchSize,
    Coordinates,
    Double,
    GridName,
    Guidance,
    Input,
    Json,
    Label,
    Model,
    Nfe,
    Number,
    Out,
    Prompt,
    Resize,
    Seed,
    SolverName,
    Steps,
    bar,
    count_samples,
    count_steps,
    make_solver,
    read_input,
    table,
    tell,
    to_images,
)
from .runs import Address, Device, Engine, Run, RunLocation, Shard, Workers, run_job, runs

app = typer.Typer(
    name="steadyflow",
    help="Sample, invert, reconstruct, edit and diagnose diffusion and flow models, stably.",
    epilog="Exit status: 0 done; 1 an error, told in one line (--debug shows where it came from); 2 wrong usage; "
    "130 stopped by Ctrl-C. Example: steadyflow diagnose --n 16 --solver ddim --steps 50",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    prompt: Prompt = None,
    guidance: Guidance = 1.0,
    solver: SolverName = "ddim",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    coordinates: Coordinates = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    out: Out = None,
    run: Run = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    shard: Shard = None,
    as_json: Json = False,
) -> None:
    """Draw samples from a model."""
    method = make_solver(solver, coordinates)
    steps = count_steps(method, steps, nfe, 50)
    place = RunLocation(run, engine, address, workers, shard)
    in_folder = place.wanted()
    from ..loading import apply_condition, load_model

    denoiser = load_model(model, device)
    if in_folder:
        from ..runs import Sampling

        told = {"label": label, "prompt": prompt, "guidance": guidance, "seed": seed, "device": device}
        job = Sampling(model, n, method.spec(), steps, grid, batch_size or 64, **told)
        run_job(job, place, out, as_json, denoiser)
        return
    from ..datasets import arrays
    from ..tasks import sample as draw

    given = apply_condition(denoiser, label, guidance, prompt)
    drawn = draw(given, n=n, solver=method, steps=steps, grid=grid, seed=seed, batch_size=batch_size, device=device)
    if out is not None:
        arrays.write(out, to_images(denoiser, drawn.x))
    figures = {
        "solver": method.name,
        "samples": n,
        "steps": drawn.steps,
        "nfe": drawn.nfe,
        "mean": drawn.x.mean().item(),
        "std": drawn.x.std().item(),
        "max |x|": drawn.x.abs().max().item(),
    }
    tell(figures, as_json, out)


@app.command(epilog="Example: steadyflow roundtrip --input seven.png --label 7 --solver ees25 --nfe 48 --out back.png")
def roundtrip(
    model: Model = "digits",
    input: Input = None,
    n: Number = 16,
    label: Label = None,
    prompt: Prompt = None,
    guidance: Guidance = 1.0,
    solver: SolverName = "ees25",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    coordinates: Coordinates = None,
    resize: Resize = False,
    batch_size: BatchSize = None,
    out: Out = None,
    save: Annotated[Path | None, typer.Option(help="Where to save the inversion, to decode it later.")] = None,
    as_json: Json = False,
) -> None:
    """Invert samples, generate them again, and say how well they came back."""
    from ..datasets import arrays
    from ..loading import apply_condition, load_model
    from ..metrics import rmse
    from ..tasks import invert

    denoiser = load_model(model)
    x, labels = read_input(denoiser, input, n, resize, label)
    method = make_solver(solver, coordinates)
    inversion = invert(
        apply_condition(denoiser, labels, guidance, prompt),
        x,
        solver=method,
        steps=count_steps(method, steps, nfe, 16),
        grid=grid,
        batch_size=batch_size,
    )
    if save is not None:
        inversion.save(save)
    back = inversion.decode(batch_size=batch_size)
    if out is not None:
        arrays.write(out, to_images(denoiser, back.x))
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
    tell(figures, as_json, out)


@app.command(epilog="Example: steadyflow invert --input photographs --model sd-folder --solver ees25 --run inverted")
def invert(
    model: Model = "digits",
    input: Input = None,
    n: Annotated[
        int | None, typer.Option("--n", help="How many samples; by default all of the input, else 16.")
    ] = None,
    label: Label = None,
    prompt: Prompt = None,
    guidance: Guidance = 1.0,
    solver: SolverName = "ees25",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    coordinates: Coordinates = None,
    resize: Resize = False,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    double: Double = False,
    save: Annotated[Path | None, typer.Option(help="Where to save the inversion, to decode or edit it later.")] = None,
    out: Out = None,
    run: Run = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    shard: Shard = None,
    as_json: Json = False,
) -> None:
    """Find the latents that generate samples, and keep them."""
    method = make_solver(solver, coordinates)
    steps = count_steps(method, steps, nfe, 16)
    place = RunLocation(run, engine, address, workers, shard)
    in_folder = place.wanted()
    if in_folder and save is not None:
        raise InputError("save: with --run every shard is a saved inversion")
    from ..loading import apply_condition, load_model

    denoiser = load_model(model, device)
    if in_folder:
        from ..runs import Inverting

        told = {"label": label, "prompt": prompt, "guidance": guidance, "device": device}
        told |= {"input": input, "resize": resize, "double": double}
        count = count_samples(denoiser, input, n, resize, label)
        job = Inverting(model, count, method.spec(), steps, grid, batch_size or 64, **told)
        run_job(job, place, out, as_json, denoiser)
        return
    from .. import tasks
    from ..datasets import arrays

    x, labels = read_input(denoiser, input, n, resize, label)
    given = apply_condition(denoiser, labels, guidance, prompt)
    x = (x.double() if double else x).to(device)
    found = tasks.invert(given, x, solver=method, steps=steps, grid=grid, batch_size=batch_size)
    if save is not None:
        found.save(save)
    if out is not None:
        arrays.write(out, found.latent)
    figures = {
        "solver": method.name,
        "samples": len(x),
        "steps": found.steps,
        "nfe": found.nfe,
        "latent mean": found.latent.mean().item(),
        "latent std": found.latent.std(correction=0).item(),
        "latent max |x|": found.latent.abs().max().item(),
    }
    tell(figures, as_json, save or out)


app.command(
    epilog="Example: steadyflow edit --model ink --image seven.png --source 'a handwritten seven' "
    "--target 'a handwritten two' --guidance 5 --out two.png"
)(edit)


@app.command(epilog="Example: steadyflow diagnose --n 16 --solver ddim --steps 50 --verify --out diagnosis")
def diagnose(
    model: Model = "digits",
    input: Input = None,
    n: Number = 16,
    label: Label = None,
    prompt: Prompt = None,
    guidance: Guidance = 1.0,
    back: Annotated[float | None, typer.Option(help="Guidance of the way back, if it differs.")] = None,
    solver: SolverName = "ees25",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    coordinates: Coordinates = None,
    resize: Resize = False,
    double: Double = False,
    verify: Annotated[bool, typer.Option("--verify", help="Carry the recommendation out.")] = False,
    contractivity: Annotated[
        bool, typer.Option("--contractivity", help="Instead, whether each step of the way back contracts.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for the report.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="With --run, how many are diagnosed at a time.")] = None,
    device: Device = "cpu",
    run: Run = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    shard: Shard = None,
    as_json: Json = False,
) -> None:
    """Say where the error of a round trip comes from and what to change."""
    method = make_solver(solver, coordinates)
    steps = count_steps(method, steps, nfe, 16)
    place = RunLocation(run, engine, address, workers, shard)
    in_folder = place.wanted()
    if in_folder and (verify or contractivity or out is not None):
        raise InputError("verify, contractivity, out: do not go with --run; diagnose a few samples with them")
    from ..loading import apply_condition, load_model

    denoiser = load_model(model, device)
    if in_folder:
        from ..runs import Diagnosing

        told = {"label": label, "prompt": prompt, "guidance": guidance, "device": device, "back": back}
        told |= {"input": input, "resize": resize, "double": double}
        count = count_samples(denoiser, input, None if input else n, resize, label)
        job = Diagnosing(model, count, method.spec(), steps, grid, batch_size or 64, **told)
        run_job(job, place, None, as_json, denoiser)
        return
    from ..diagnostics import diagnose as examine

    x, labels = read_input(denoiser, input, n, resize, label)
    x = (x.double() if double else x.float()).to(device)
    given = apply_condition(denoiser, labels, guidance, prompt)
    if contractivity:
        _contractivity(given, given if back is None else given.with_guidance(back), x, method, steps, grid, out, as_json)
        return
    found = examine(
        given,
        x,
        solver=method,
        steps=steps,
        grid=grid,
        guidance=back,
        verify=verify,
    )
    typer.echo(json.dumps(found.figures(), indent=2) if as_json else found.summary())
    if out is not None:
        from ..diagnostics import report

        path = report.write(found, out / "diagnosis.html")
        typer.echo(f"report: {path}", err=as_json)


def _contractivity(there, back, x, method, steps, grid, out: Path | None, as_json: bool) -> None:
    """Print the steps' Lipschitz constants from the latents of x, found by RK4, and draw them into the folder."""
    from .. import grids, invert
    from .._internal import plots
    from ..diagnostics import contractivity as gauge

    latent = invert(there, x, solver="rk4", steps=24, grid=grid).latent
    times = grids.make(grid, back.schedule, steps)
    found = gauge(back, latent, times, method, coordinates="flow")
    values = found.lipschitz.double()
    middle, most = values.median(1).values.tolist(), values.amax(1).tolist()
    rows = list(zip(found.times[:-1], middle, most, found.certified.tolist(), strict=True))
    if as_json:
        keys = ("t", "median", "largest", "contracts")
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        cells = [[f"{t:.4g}", f"{half:.3f}", f"{top:.3f}", f"{share:.0%}"] for t, half, top, share in rows]
        typer.echo(table(["from t", "Lipschitz, median", "largest", "contracts"], cells, left=()))
        typer.echo(
            f"\nlocal Lipschitz constants of {method.name!r} in the flow coordinates: below 1, a step contracts."
            f"\nTheir product, an upper bound on what the whole way adds: median {found.worst.median():.3g}"
        )
    if out is not None:
        picture = plots.figure(7, 4)
        axes = picture.subplots()
        axes.semilogy(found.times[:-1], values, color="C0", alpha=0.3, lw=0.8)
        axes.semilogy(found.times[:-1], values.median(1).values, "o-", color="C3", ms=3, label="median")
        axes.axhline(1.0, color="k", lw=0.8)
        axes.set(
            xlabel="t at the beginning of the step",
            ylabel="local Lipschitz constant",
            title=f"{method.name}, {steps} steps",
        )
        axes.legend(frameon=False)
        plots.save(picture, out / "contractivity.png")
        typer.echo(f"picture: {out / 'contractivity.png'}", err=as_json)


@app.command(epilog="Example: steadyflow solvers --plot regions.png --names ees25,rex-euler")
def solvers(
    plot: Annotated[Path | None, typer.Option(help="Draw the stability regions into this file.")] = None,
    names: Annotated[str | None, typer.Option(help="Which to draw, separated by commas.")] = None,
    as_json: Json = False,
) -> None:
    """List the solvers with their facts, or draw their stability regions."""
    from ..solvers import registry

    if plot is not None:
        from .._internal import plots
        from ..diagnostics import stability_region

        plots.save(stability_region.figure(names.split(",") if names else None), plot)
        typer.echo(json.dumps({"written to": str(plot)}) if as_json else f"written to {plot}")
        return

    facts = {name: dataclasses.asdict(registry.get(name).properties) for name in registry.names()}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(table(*registry.properties_table(), left=(0, 3, 6)))


@app.command(epilog="Example: steadyflow demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("demo"),
    n: Number = 100,
    as_json: Json = False,
) -> None:
    """Invert, reconstruct and edit real held-out digits with five solvers; print a table, write a report."""
    from steadyflow_lab import demo as lab
    from steadyflow_lab import report

    with bar("setting", len(lab.SOLVERS) * len(lab.BUDGETS)) as tell:
        result = lab.study(n, progress=tell)
    path = report.write(result, out / "report.html")
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in result.rows], indent=2))
        return
    typer.echo(table(*lab.table(result), left=(0,)))
    typer.echo(
        f"\nerror: rms of reconstruction less source, on [-1, 1]; edited: share recognised as the target digit;\n"
        f"kept: median distance of the edit from its source; nfe: evaluations each way.\n"
        f"{n} held-out digits, {result.seconds:.0f} s. Report: {path}"
    )


app.add_typer(lab, name="lab")
app.add_typer(runs, name="runs")


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
