"""Runs in folders: the options that `sample`, `invert` and `diagnose` share for them, and `steadyflow runs`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import Json, tell

Run = Annotated[
    Path | None,
    typer.Option(help="A folder to work in: in shards, resumable by the same command, on one core unless --engine."),
]
Engine = Annotated[str, typer.Option(help="'local', or 'ray' for all cores or a cluster.")]
Address = Annotated[str | None, typer.Option(help="With --engine ray, the cluster, such as 'auto'.")]
Workers = Annotated[int | None, typer.Option(help="With --engine ray, at most so many workers.")]
Shard = Annotated[int | None, typer.Option(help="With --run, samples a file, a multiple of --batch-size.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...")]

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

runs = typer.Typer(
    help="Look into the folders of runs.", epilog="Example: steadyflow runs show inverted", no_args_is_help=True
)


@dataclasses.dataclass(frozen=True)
class RunLocation:
    """Where a run works."""

    folder: Path | None
    engine: str
    address: str | None
    workers: int | None
    shard: int | None

    def wanted(self) -> bool:
        """Whether a run was asked for; raises `InputError` for its options without it."""
        if self.folder is None and (self.engine != "local" or self.shard is not None):
            raise InputError("engine, shard: go with --run, the folder to work in")
        if self.folder is None and (self.address is not None or self.workers is not None):
            raise InputError("address, workers: go with --run and --engine ray")
        return self.folder is not None


def run_job(job: Any, place: RunLocation, out: Path | None, as_json: bool, model: Any) -> None:
    """Do the job with its model, print its figures, and export it if asked."""
    from ..runs import engine
    from ..runs import run_job as work

    assert place.folder is not None
    chosen = engine(place.engine, place.address, place.workers)
    try:
        run = work(job, place.folder, engine=chosen, shard=place.shard, model=model)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command goes on with {place.folder}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if out is not None:
        _export(run, out, model)
    tell({"run": str(place.folder), "solver": job.solver["name"], **run.figures()}, as_json, out)


def _export(run: Any, out: Path, model: Any) -> None:
    from ..runs.exporting import export

    decode = getattr(model, "decode", None) if run.job.task == "sample" else None
    export(run, out, *([] if decode is None else [decode]))


@runs.command("show", epilog="Example: steadyflow runs show inverted")
def show(folder: Annotated[Path, typer.Argument(help="The folder of a run.")], as_json: Json = False) -> None:
    """What a run is, how far it is, and its figures once it is done; every shard is checked."""
    from ..runs import RunFolder

    run = RunFolder.open(folder)
    done = sum(shard.stop - shard.start for shard in run.shards())
    about = {"task": run.job.task, "model": run.job.model, "solver": run.job.solver["name"], "steps": run.job.steps}
    figures = run.figures() if done == run.job.n else {"samples": run.job.n}
    tell({**about, "done": f"{done} of {run.job.n}", "shards": len(run.shards()), **figures}, as_json, None)


@runs.command("export", epilog="Example: steadyflow runs export inverted --out latents.npy")
def export(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="A .npy, or a folder for a PNG a sample.")],
    as_json: Json = False,
) -> None:
    """Write the samples or latents of a finished run to one file, or pictures to a folder."""
    from ..loading import load_model
    from ..runs import RunFolder

    run = RunFolder.open(folder)
    _export(run, out, load_model(run.job.model))
    typer.echo(json.dumps({"written to": str(out)}) if as_json else f"written to {out}")
