"""`steadyflow demo` and `steadyflow lab run ...`: what this package adds to the command line of steadyflow.

Both are registered as entry points of the group "steadyflow.commands": an application of typer is added under its name,
and a function becomes a command, with its attribute `epilog` below the help.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steadyflow.cli.options import Json, bar, check_place, print_json, table

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
    from steadyflow._internal import plots

    from . import demo as demonstration
    from . import report

    plots.require()
    check_place("out", out, folder=True)
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


Figures = Annotated[
    list[str] | None, typer.Option(help="A figure of the paper, such as 5 or E.13; may be repeated. All by default.")
]
Quick = Annotated[bool, typer.Option("--quick", help="The small form: each figure within a minute of one core.")]
Out = Annotated[Path, typer.Option(help="The folder for results and pictures; a rerun goes on there.")]


_STUDIES = {
    "instability": ("Why reconstructions fail (2506.18290)", "chain-digits"),
    "editing": ("What edits by exactly and nearly reversible solvers keep (2605.16399)", "smoothing"),
    "stein": ("Stein corrections of large steps, beside controls (2606.07835)", "bound"),
    "hallucination": ("Impossible samples between two modes (2605.06831)", "5"),
}
"""What each paper is about, and a figure of it."""


def _command(name: str, about: str, example: str) -> None:
    """Add the command that runs the figures of a paper."""

    def command(
        figure: Figures = None,
        quick: Quick = False,
        out: Out = _OUT,
        engine: Engine = "local",
        address: Address = None,
        workers: Workers = None,
        as_json: Json = False,
    ) -> None:
        _study(name, figure, quick, out, engine, address, workers, as_json)

    words = f"{about}: each claim of the paper with a verdict."
    run.command(name, help=words, epilog=f"Example: steadyflow lab run {name} --figure {example} --quick")(command)


for _name, (_about, _figure) in _STUDIES.items():
    _command(_name, _about, _figure)
run.command("reconstruction", epilog=EPILOG)(reconstruction)


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
    check_place("out", out, folder=True)
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
            if self.outer.disable:  # no terminal: a word for the log
                typer.echo(f"figure {name}", err=True)
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


@run.command("piebench", epilog="Example: steadyflow lab run piebench --data PIE-Bench --model sd-folder --device cuda")
def piebench(
    data: Annotated[Path, typer.Option(help="The folder with mapping_file.json and annotation_images.")],
    model: Annotated[str, typer.Option(help="The pipeline: its folder, or its name on the hub.")] = "ink",
    solver: Annotated[
        list[str] | None, typer.Option(help="A solver's name (see `steadyflow solvers`); may be repeated. ees25.")
    ] = None,
    guidance: Annotated[
        list[float] | None, typer.Option(help="A scale of classifier-free guidance; may be repeated. 7.5.")
    ] = None,
    smooth: Annotated[
        list[float] | None, typer.Option(help="Average the field over this radius, 0 for not at all; may be repeated.")
    ] = None,
    smooth_when: Annotated[str, typer.Option(help="On which ways: inversion, generation or both.")] = "inversion",
    nfe: Annotated[int, typer.Option(help="Model evaluations each way.")] = 48,
    limit: Annotated[int | None, typer.Option(help="How many of its pictures.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures that are edited together, and kept together.")] = 4,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="In what the networks compute: float32, float16 or bfloat16.")] = "float32",
    clip: Annotated[str | None, typer.Option(help="CLIP's weights: a folder, or a name.")] = None,
    dino: Annotated[str | None, typer.Option(help="DINO's weights: a folder, or a name.")] = None,
    perceptual: Annotated[bool, typer.Option("--lpips", help="LPIPS too (needs torchvision).")] = False,
    out: Out = _OUT,
    as_json: Json = False,
) -> None:
    """Run PIE-Bench in every combination of solvers, guidance scales and radii, batch by batch; a rerun goes on."""
    from itertools import product

    from steadyflow import metrics
    from steadyflow._internal import files, strict_json

    from .editing import piebench as benchmark
    from .editing import piebench_runs as runs

    check_place("out", out, folder=True)
    settings = [
        runs.Setting(name, scale, nfe, radius, smooth_when)
        for name, scale, radius in product(solver or ["ees25"], guidance or [7.5], smooth or [0.0])
    ]
    denoiser = runs.load(model, device, dtype)
    extractors: dict[str, metrics.Extractor] = {}
    if clip is not None:
        extractors["clip"] = metrics.Clip(clip)
    if dino is not None:
        extractors["dino"] = metrics.Dino(dino)
    where = {"name": model, "device": device, "dtype": dtype, "batch_size": batch_size, "folder": out}
    what = {"extractors": extractors, "perceptual": perceptual, "limit": limit}
    with bar("picture", len(benchmark.items(data, limit)) * len(settings)) as advance:
        found = runs.run(denoiser, data, settings, **where, **what, progress=advance)
    files.write_text(out / "piebench.json", strict_json.dumps(strict_json.plain(found), indent=1))
    if as_json:
        print_json(found)
        return
    typer.echo(f"PIE-Bench, {len(found[0]['scores'])} pictures; means:\n")
    typer.echo(table(*runs.table(found), left=(0,)))
    typer.echo(f"\nAll scores: {out / 'piebench.json'}")
