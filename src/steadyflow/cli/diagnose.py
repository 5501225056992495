"""`steadyflow diagnose`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .runs import RunLocation, perform, report


def diagnose(
    model: o.Model = "digits",
    call: o.Call = None,
    input: o.Input = None,
    n: o.Number = None,
    resize: o.Resize = False,
    frames: o.Frames = None,
    label: o.Label = None,
    prompt: o.Prompt = None,
    target: Annotated[str | None, typer.Option(help="What to move to: a class, or a prompt.")] = None,
    guidance: o.Guidance = None,
    source_guidance: o.SourceGuidance = None,
    solver: o.Solver = None,
    coordinates: o.Coordinates = None,
    steps: o.Steps = None,
    nfe: o.Nfe = None,
    grid: o.Grid = None,
    strength: o.Strength = None,
    t_min: o.TimeMin = None,
    t_max: o.TimeMax = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of the reference solves; a thousandth of the error, within 1e-10 and 1e-5.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Carry the recommendation out.")] = False,
    contractivity: Annotated[
        bool, typer.Option("--contractivity", help="Instead, whether each step of the way back contracts.")
    ] = False,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    double: o.Double = False,
    out: o.Folder = None,
    run: o.Run = None,
    engine: o.Engine = None,
    address: o.Address = None,
    workers: o.Workers = None,
    shard: o.Shard = None,
    strict: o.Strict = False,
    check_inputs: o.CheckInputs = None,
    recompute_changed: o.RecomputeChanged = False,
    model_version: o.ModelVersion = None,
    as_json: o.Json = False,
) -> None:
    """Say where the error of a round trip, or with --target of an edit, comes from and what to change.

    Samples that are computed together get one diagnosis.
    """
    from .._internal import plots
    from ..loading import load_model
    from ..runs import Diagnosing

    care = o.given(strict=strict, check_inputs=check_inputs, recompute_changed=recompute_changed)
    care |= o.given(model_version=model_version)
    place = RunLocation(run, engine, address, workers, shard, care)
    place.refuse(out=out)
    if out is not None:
        plots.require()
        o.check_place("out", out, folder=True)
    words = o.given(input=input, resize=resize, frames=frames, label=label, prompt=prompt, guidance=guidance)
    words |= o.given(source_guidance=source_guidance, steps=steps, nfe=nfe, grid=grid, strength=strength)
    words |= o.given(t_min=t_min, t_max=t_max, tolerance=tolerance, verify=verify, block=batch_size, double=double)
    words |= o.given(call_inputs=o.call_of(call))
    words["solver"] = o.solver_spec(solver, coordinates)
    denoiser = load_model(model, device, o.call_of(call))
    words |= o.given(target=o.condition(denoiser, "target", target))
    if contractivity:
        _check_instead(run=run, batch_size=batch_size, tolerance=tolerance, verify=verify or None, target=target)
    job = Diagnosing(model, n=o.count_samples(denoiser, input, n, resize, label, frames), device=device, **words)
    if contractivity:
        _contractivity(job, denoiser, out, as_json)
        return
    done = perform(job, place, denoiser)
    found = [] if run is not None else [part.kept for part in done.parts()]
    if len(found) == 1:
        if as_json:
            o.print_json(found[0].figures())
        else:
            typer.echo("\n".join([found[0].summary(), *([done.job.reason] if done.job.reason else [])]))
    else:
        report(done, place, as_json, None)
    if out is not None:
        _write_reports(found, done.job.block, out, as_json)


def _check_instead(**others: Any) -> None:
    """Raise `InputError` for what belongs to the diagnosis that --contractivity stands in place of."""
    from ..errors import InputError

    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name}: not valid with --contractivity, which diagnoses no error")


def _write_reports(found: list[Any], block: int, out: Path, as_json: bool) -> None:
    """One report, or one per block, with the index of its first sample in its name."""
    from ..diagnostics import report

    for k, one in enumerate(found):
        name = "diagnosis.html" if len(found) == 1 else f"diagnosis-{k * block:09d}.html"
        typer.echo(f"report: {report.write(one, out / name)}", err=as_json)


def _contractivity(job: Any, model: Any, out: Path | None, as_json: bool) -> None:
    """Print how much each step of the way back contracts, and draw it into the folder."""
    from ..diagnostics import contractivity_report

    prepared = job.prepare(model)
    job, block = prepared.job, prepared.block(0, job.n)
    found = contractivity_report.study(
        block.model, block.x, **job.words("guidance", "source_guidance"), **job.options()
    )
    if as_json:
        o.print_json(found.figures())
    else:
        typer.echo(o.table(*found.table(), left=()))
        typer.echo(f"\n{found.summary()}")
    if out is not None:
        typer.echo(f"picture: {found.draw(out / 'contractivity.png')}", err=as_json)
