"""Doing a job for a command, in memory or in a folder; and `steadyflow runs`, which looks into folders."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json, print_figures, print_json

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""
FINISHED_WITHOUT = 3
"""The exit status of a run that was finished without some of its samples."""

runs = typer.Typer(
    help="Look into the folders of runs.", epilog="Example: steadyflow runs show inverted", no_args_is_help=True
)


@dataclass(frozen=True)
class RunLocation:
    """Where a run works: in a folder, or in memory.

    Raises:
        InputError: Something is given that is only valid with a folder.
    """

    folder: Path | None
    engine: str | None = None
    address: str | None = None
    workers: int | None = None
    shard: int | None = None
    care: Mapping[str, Any] = field(default_factory=dict)
    """What else `run_job` takes for a folder."""

    def __post_init__(self) -> None:
        from ..errors import InputError

        others = {name: getattr(self, name) for name in ("engine", "address", "workers", "shard")}
        for name, value in {**others, **self.care}.items():
            if self.folder is None and value is not None:
                raise InputError(f"{name}: only valid with --run, the folder to work in")

    def refuse(self, **others: Any) -> None:
        """Raise `InputError` for what is given and cannot be had from a run in a folder."""
        from ..errors import InputError

        for name, value in others.items():
            if self.folder is not None and value is not None:
                raise InputError(f"{name}: not valid with --run, where the results are the run's shards")


def perform(job: Any, place: RunLocation, model: Any, *, out: Path | None = None, decode: bool = True) -> Any:
    """Do a job, and write its samples if that is asked for.

    Args:
        job: The job.
        place: Where.
        model: The job's.
        out: Where to write the samples.
        decode: Whether they are latents of pictures, where the model works on latents.

    Returns:
        The run.
    """
    from ..runs import engine, export, run_job
    from ..runs.exporting import check_export

    if out is not None:
        check_export(out, model, n=job.n, decoded=decode)
    chosen = None if place.folder is None else engine(place.engine or "local", place.address, place.workers)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*: finished without", UserWarning)  # `report` says it
            run = run_job(job, place.folder, engine=chosen, shard=place.shard, model=model, **place.care)
    except KeyboardInterrupt:
        goes_on = "" if place.folder is None else f"; the same command goes on with {place.folder}"
        typer.echo(f"interrupted{goes_on}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if out is not None:
        export(run, out, *_decoder(model, decode), model=model)
    return run


def report(run: Any, place: RunLocation, as_json: bool, out: Path | None) -> None:
    """Print the figures of a run, with its folder and with the reason for its solver, if there are any.

    Args:
        run: The run.
        place: Where it works.
        as_json: Whether as JSON.
        out: What has been written, if anything.

    Raises:
        typer.Exit: The run was finished without some of its samples, with exit status 3.
    """
    folder = {} if place.folder is None else {"run": str(place.folder)}
    reason = {"reason": run.job.reason} if run.job.reason else {}
    print_figures({**folder, **run.figures(), **reason, **_set_aside(run, as_json)}, as_json, out)
    if run.aside():
        raise typer.Exit(FINISHED_WITHOUT)


def _set_aside(run: Any, as_json: bool) -> dict[str, Any]:
    """What a run was finished without, and what else is in its folder."""
    from ..runs.driving import finished_without

    found: dict[str, Any] = {}
    aside, foreign = run.aside(), run.foreign() if hasattr(run, "foreign") else []
    if aside:
        found["finished without"] = (
            [{"samples": [one.start, one.stop], "input": one.name, "cause": one.cause} for one in aside]
            if as_json
            else finished_without(aside, run.job.n).removeprefix("finished without ")
        )
    if foreign:
        found["other files"] = foreign if as_json else ", ".join(foreign)
    return found


def _decoder(model: Any, wanted: bool) -> list[Any]:
    """What makes images of the model's latents, if there is such a thing."""
    return [model.decode] if wanted and hasattr(model, "decode") else []


@runs.command("show", epilog="Example: steadyflow runs show inverted")
def show(folder: Annotated[Path, typer.Argument(help="The folder of a run.")], as_json: Json = False) -> None:
    """What a run is, how far it is, and its figures once it is done; every shard is checked."""
    from ..runs import RunFolder

    run = RunFolder.open(folder)
    done = sum(shard.stop - shard.start for shard in run.shards())
    about = {"task": run.job.task, "model": run.job.model}
    whole = done and done + sum(one.stop - one.start for one in run.aside()) == run.job.n
    figures = {**(run.figures() if whole else {"samples": run.job.n}), **_set_aside(run, as_json)}
    print_figures({**about, "done": f"{done} of {run.job.n}", "shards": len(run.shards()), **figures}, as_json, None)


@runs.command("export", epilog="Example: steadyflow runs export inverted --out latents.npy")
def export_run(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[
        Path,
        typer.Option(
            help="A .npy, .safetensors, a picture (a sheet), a video, a sound, or a folder with a picture, a folder of "
            "frames or a sound for each sample."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Write the samples or latents of a finished run to one file, or pictures to a folder."""
    from ..loading import load_model
    from ..runs import RunFolder, export
    from ..runs.exporting import check_export

    check_export(out)
    run = RunFolder.open(folder)
    model = load_model(run.job.model, call=run.job.call_inputs)
    export(run, out, *_decoder(model, run.job.task != "invert"), model=model)
    without = _set_aside(run, as_json)
    without.pop("other files", None)
    if as_json:
        print_json({"written to": str(out), **without})
    else:
        typer.echo(f"written to {out}" + "".join(f"; finished without {words}" for words in without.values()))
