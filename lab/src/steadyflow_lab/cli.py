"""`steadyflow demo` and `steadyflow lab run ...`: what this package adds to the command line of steadyflow.

Both are registered as entry points of the group "steadyflow.commands": an application of typer is added under its name,
and a function becomes a command, with its attribute `epilog` below the help.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steadyflow.cli.options import Json, bar, print_json, table
from steadyflow.errors import InputError

from .reconstruction_command import EPILOG, reconstruction

Number = Annotated[int, typer.Option("--n", help="How many samples.")]
Engine = Annotated[str, typer.Option(help="'local', or 'ray' for all cores or a cluster.")]
Address = Annotated[str | None, typer.Option(help="With --engine ray, the cluster, such as 'auto'.")]
Workers = Annotated[int | None, typer.Option(help="With --engine ray, at most so many workers.")]

_OUT = Path("lab-results")
_EXAMPLE = "Example: steadyflow lab run hallucination --figure 5 --quick --out results"


def demo(
    out: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("demo"),
    n: Number = 100,
    as_json: Json = False,
) -> None:
    """Invert, reconstruct and edit real held-out digits with five solvers; print a table, write a report."""
    from . import demo as demonstration
    from . import report

    with bar("setting", len(demonstration.SOLVERS) * len(demonstration.BUDGETS)) as advance:
        result = demonstration.study(n, progress=advance)
    path = report.write(result, out / "report.html")
    if as_json:
        print_json([dataclasses.asdict(row) for row in result.rows])
        return
    typer.echo(table(*demonstration.table(result), left=(0,)))
    typer.echo(
        f"\nerror: rms of reconstruction less source, on [-1, 1]; edited: share recognised as the target digit;\n"
        f"kept: median distance of the edit from its source; nfe: evaluations each way.\n"
        f"{n} held-out digits, {result.seconds:.0f} s. Report: {path}"
    )


demo.epilog = "Example: steadyflow demo --out demo"  # pyright: ignore[reportFunctionMemberAccess]

lab = typer.Typer(help="Run the experiments.", epilog=_EXAMPLE, no_args_is_help=True)
run = typer.Typer(
    help="Run an experiment; each prints its tables and writes pictures.", epilog=_EXAMPLE, no_args_is_help=True
)
lab.add_typer(run, name="run")


@run.command("coupling", epilog="Example: steadyflow lab run coupling --problem digits --out results")
def coupling(
    problem: Annotated[str, typer.Option(help="'mixture' (16-dimensional, exact) or 'digits'.")] = "mixture",
    n: Number = 64,
    nfe: Annotated[int, typer.Option(help="Model evaluations each way.")] = 48,
    grid: Annotated[str, typer.Option(help="uniform, quadratic, log-snr or karras.")] = "quadratic",
    out: Annotated[Path, typer.Option(help="The folder for the picture.")] = _OUT,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Compare exact reversibility with stability: edits at rising guidance, fixed and automatic coupling."""
    from steadyflow._internal import plots
    from steadyflow.runs import engine as make_engine

    from . import coupling as experiment

    plots.require()
    place = make_engine(engine, address, workers)
    with bar("method", len(experiment.METHODS)) as advance:
        rows = experiment.study(problem, n=n, nfe=nfe, grid=grid, engine=place, progress=advance)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    figure, path = plots.figure(8, 5), out / f"coupling-{problem}.png"
    experiment.draw(rows, figure.subplots())
    plots.save(figure, path)
    typer.echo(table(*experiment.table(rows), left=(0, 1)))
    typer.echo(f"\nPicture: {path}")


Figures = Annotated[
    list[str] | None, typer.Option(help="A figure of the paper, such as 5 or E.13; may be repeated. All by default.")
]
Quick = Annotated[bool, typer.Option("--quick", help="The small form: each figure within a minute of one core.")]
Out = Annotated[Path, typer.Option(help="The folder for results and pictures; a rerun goes on there.")]


@run.command("instability", epilog="Example: steadyflow lab run instability --figure chain-digits --quick")
def instability(
    figure: Figures = None,
    quick: Quick = False,
    out: Out = _OUT,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Why reconstructions fail (2506.18290): each claim of the paper with a verdict."""
    _study("instability", figure, quick, out, engine, address, workers, as_json)


run.command("reconstruction", epilog=EPILOG)(reconstruction)


@run.command("hallucination", epilog="Example: steadyflow lab run hallucination --figure 5 --quick")
def hallucination(
    figure: Figures = None,
    quick: Quick = False,
    out: Out = _OUT,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Impossible samples between two modes (2605.06831): each claim of the paper with a verdict."""
    _study("hallucination", figure, quick, out, engine, address, workers, as_json)


def _study(
    name: str,
    figures: list[str] | None,
    quick: bool,
    out: Path,
    engine: str,
    address: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Run figures of a paper; print what they give, and draw their curves."""
    from steadyflow._internal import plots
    from steadyflow.runs import engine as make_engine

    from .findings import draw
    from .papers import PAPERS
    from .studies import run_figures

    paper, place = PAPERS[name], make_engine(engine, address, workers)
    plots.require()
    with _bars(len(figures or paper.figures)) as progress:
        found = run_figures(paper, figures or (), quick=quick, folder=out, engine=place, progress=progress)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in found])
        return
    for finding in found:
        typer.echo(f"{finding.figure}: {finding.title}\n")
        typer.echo(table(finding.heads, finding.rows, left=(0, 1)))
        typer.echo(f"\n{finding.note}" if finding.note else "")
        for claim in finding.claims:
            typer.echo(f"{claim.label}: {claim.says}.\n  paper: {claim.paper}\n  here: {claim.here}")
            typer.echo(f"  verdict: {claim.verdict}\n")
        if finding.curves:
            picture = plots.figure(7, 4.5)
            draw(finding, picture)
            plots.save(picture, out / f"{paper.name}-{finding.figure}.png")
    typer.echo(f"Results and pictures: {out}")


@contextmanager
def _bars(figures: int) -> Iterator[Any]:
    """Show how far a study has come: its figures, and the pieces of the one at work with an estimate of the rest."""
    from tqdm import tqdm

    class Shown:
        def __init__(self):
            self.outer = tqdm(total=figures, unit="figure", leave=False, disable=None, position=0)
            self.inner = tqdm(total=0, unit="piece", leave=False, disable=None, position=1)
            self.begun = False

        def figure(self, name: str) -> None:
            self.outer.update(int(self.begun))
            self.begun = True
            self.outer.set_description(f"figure {name}")
            self.inner.reset(total=0)

        def expect(self, units: int) -> None:
            self.inner.total = (self.inner.total or 0) + units
            self.inner.refresh()

        def advance(self) -> None:
            self.inner.update()

    shown = Shown()
    try:
        yield shown
    finally:
        shown.inner.close()
        shown.outer.close()


@run.command("stein", epilog="Example: steadyflow lab run stein --figure bound --quick")
def stein(
    figure: Figures = None,
    quick: Quick = False,
    out: Out = _OUT,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Stein corrections of large steps (2606.07835): each claim of the paper with a verdict, beside controls."""
    _study("stein", figure, quick, out, engine, address, workers, as_json)


@run.command("editing", epilog="Example: steadyflow lab run editing --quick --out results")
def editing(
    n: Number = 96,
    nfe: Annotated[int, typer.Option(help="Model evaluations each way.")] = 48,
    quick: Annotated[bool, typer.Option("--quick", help="Three solvers, two guidance scales, 16 pictures.")] = False,
    data: Annotated[Path | None, typer.Option(help="Instead, PIE-Bench: the folder with mapping_file.json.")] = None,
    model: Annotated[str, typer.Option(help="For PIE-Bench, the pipeline: its folder or name.")] = "ink",
    solver: Annotated[str, typer.Option(help="For PIE-Bench, a solver's name; see `steadyflow solvers`.")] = "ees25",
    guidance: Annotated[float, typer.Option(help="For PIE-Bench, the scale of classifier-free guidance.")] = 7.5,
    limit: Annotated[int | None, typer.Option(help="For PIE-Bench, how many of its pictures.")] = None,
    clip: Annotated[str | None, typer.Option(help="For PIE-Bench, CLIP's weights: a folder, or a name.")] = None,
    dino: Annotated[str | None, typer.Option(help="For PIE-Bench, DINO's weights: a folder, or a name.")] = None,
    perceptual: Annotated[bool, typer.Option("--lpips", help="For PIE-Bench, LPIPS too (needs torchvision).")] = False,
    out: Annotated[Path, typer.Option(help="The folder for results and pictures.")] = _OUT,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Measure what edits keep and what they change, over solvers and guidance; or run PIE-Bench with one solver."""
    if data is not None:
        _piebench(data, model, solver, nfe, guidance, limit, clip, dino, perceptual, out, as_json)
        return
    from steadyflow._internal import files, plots
    from steadyflow.datasets import arrays
    from steadyflow.runs import engine as make_engine

    from . import editing as experiment

    methods = experiment.QUICK if quick else experiment.METHODS
    scales = (2.0, 7.5) if quick else experiment.GUIDANCES
    plots.require()
    place = make_engine(engine, address, workers)
    with bar("method", len(methods)) as advance:
        count = min(n, 16) if quick else n
        options = {"guidances": scales, "methods": methods, "folder": out, "engine": place}
        rows = experiment.study(n=count, nfe=nfe, **options, progress=advance)
    written = {"extractor": experiment.InkExtractor().hash, "rows": [dataclasses.asdict(row) for row in rows]}
    files.write_text(out / "editing.json", json.dumps(written, indent=1))
    figure = plots.figure(12, 4.5)
    experiment.draw(rows, figure)
    plots.save(figure, out / "editing.png")
    sheet = experiment.pictures(experiment.bundled(), ("ees25", "ddim", "rex-midpoint"), nfe=nfe)
    arrays.write(out / "editing-pictures.png", sheet)
    if as_json:
        print_json(written)
        return
    for task, title in (("digit", "another digit"), ("ink", "another ink")):
        typer.echo(f"To {title}, mean over the pictures with a 95 % interval:\n")
        typer.echo(table(*experiment.table(rows, task), left=(0,)) + "\n")
    typer.echo(f"Results and pictures: {out}")


def _piebench(
    data: Path,
    model: str,
    solver: str,
    nfe: int,
    guidance: float,
    limit: int | None,
    clip: str | None,
    dino: str | None,
    perceptual: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Run PIE-Bench and write its result file."""
    from tqdm import tqdm

    from steadyflow import __version__, metrics
    from steadyflow._internal import files
    from steadyflow.diffusers import PipelineModel
    from steadyflow.loading import load_model
    from steadyflow.solvers import get
    from steadyflow.solvers.base import steps_for

    from . import piebench

    denoiser, method = load_model(model), get(solver)
    if not isinstance(denoiser, PipelineModel):
        raise InputError(f"model: {model!r} is no diffusers pipeline; PIE-Bench needs one that takes prompts")
    extractors: dict[str, metrics.Extractor] = {}
    if clip is not None:
        extractors["clip"] = metrics.Clip(clip)
    if dino is not None:
        extractors["dino"] = metrics.Dino(dino)
    settings = {"model": model, "solver": method.spec(), "nfe": nfe, "guidance": guidance, "version": __version__}
    options = {"solver": method, "steps": steps_for(method, nfe), "guidance": guidance, "progress": False}
    total = len(piebench.items(data, limit))
    scores = list(
        tqdm(
            piebench.run(denoiser, data, extractors=extractors, perceptual=perceptual, limit=limit, **options),
            total=total,
            unit="picture",
            leave=False,
            disable=None,
        )
    )
    found = piebench.as_json(scores, extractors, **settings)
    files.write_text(out / "piebench.json", json.dumps(found, indent=1))
    if as_json:
        print_json(found)
        return
    typer.echo(f"PIE-Bench, {len(scores)} pictures, protocol and settings {found['fingerprint']}\n")
    cells = [[name, f"{value:.4g}"] for name, value in found["means"].items()]
    typer.echo(table(["metric", "mean"], cells, left=(0,)))
    typer.echo(f"\nAll scores: {out / 'piebench.json'}")
