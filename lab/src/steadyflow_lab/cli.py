"""`steadyflow demo` and `steadyflow lab run ...`: what this package adds to the command line of steadyflow.

Both are registered as entry points of the group "steadyflow.commands": an application of typer is added under its name,
and a function becomes a command, with its attribute `epilog` below the help.
"""

import dataclasses
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steadyflow.cli import options as o
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
    model: Annotated[
        str,
        typer.Option(help="What edits: a diffusers pipeline (its folder, or its name on the hub), or another model."),
    ] = "scenes",
    call: o.Call = None,
    image: Annotated[
        Path | None, typer.Option(help="A picture of yours, instead of held-out ones of the bundled pipeline.")
    ] = None,
    resize: o.Resize = False,
    source: Annotated[str | None, typer.Option(help="What the picture shows: a prompt, or a class.")] = None,
    target: Annotated[str | None, typer.Option(help="What it is to become.")] = None,
    guidance: Annotated[
        list[float] | None, typer.Option(help="Of the edits; may be given several times. 2.5 and 7.5.")
    ] = None,
    nfe: Annotated[int, typer.Option(help="Evaluations each way; four times as many in the fine solve.")] = 24,
    tuned: Annotated[
        Path | None, typer.Option(help="The file of a solver tuned for the model (`steadyflow tune`), to compare too.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="How many of the bundled pipeline's own pictures; 8.")] = None,
    diagnosis: Annotated[
        bool, typer.Option("--diagnosis/--no-diagnosis", help="Whether to ask why DDIM does not return the picture.")
    ] = True,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:
    """Edit pictures weakly and strongly with solvers side by side: print a table, write a report with the pictures.

    Without options the pictures are held-out ones of the bundled pipeline. With --model, --image and --target it is a
    picture of yours, in a pipeline of yours.
    """
    from steadyflow._internal import plots

    from . import demo as demonstration
    from . import report

    plots.require()
    o.check_place("out", out, folder=True)
    subject = _subject(model, call, image, resize, source, target, n, device)
    words: dict[str, Any] = {"nfe": nfe, "tuned": None if tuned is None else str(tuned), "explain": diagnosis}
    words |= {} if guidance is None else {"guidances": guidance}
    with bar("part") as advance:
        result = demonstration.study(subject, progress=advance, **words)
    path = report.write(result, out / "report.html")
    if as_json:
        figures: dict[str, Any] = {"solvers": [dataclasses.asdict(row) for row in result.rows]}
        if result.diagnosis is not None:
            figures["diagnosis"] = result.diagnosis.figures()
        print_json(figures)
        return
    typer.echo(f"{demonstration.title(result)}. {demonstration.sentence(result)}\n")
    typer.echo(table(*demonstration.table(result), left=(0,)))
    if result.diagnosis is not None:
        typer.echo(f"\nWhy DDIM does not return the picture:\n{result.diagnosis.summary()}")
    n = len(result.pictures)
    legend = (
        "round trip: what comes back, less the picture; edit: the edit, less that of a fine solve, at each guidance; "
    )
    if result.subject.judge is not None:
        legend += "done: edits that a classifier takes for what was asked; around: what changed outside of them; "
    legend += "" if n == 1 else f"medians over {n} pictures; "
    legend += "root mean squares of a picture's range; nfe: evaluations each way."
    typer.echo(f"\n{textwrap.fill(legend, 100)}\n{result.seconds:.0f} s. The pictures are in {path}")


def _subject(
    model: str,
    call: list[str] | None,
    image: Path | None,
    resize: bool,
    source: str | None,
    target: str | None,
    n: int | None,
    device: str,
) -> Any:
    """What is edited: the bundled scenes, or a picture of the user's."""
    from steadyflow.datasets.sources import open_source
    from steadyflow.errors import InputError
    from steadyflow.loading import load_model

    from . import demo as demonstration

    if image is None:
        others = {"model": model != "scenes", "call": call, "resize": resize, "source": source, "target": target}
        for name, value in others.items():
            if value:
                raise InputError(f"{name}: goes with --image, a picture of yours")
        if device != "cpu":
            raise InputError("device: the bundled pipeline runs on the CPU; give --image and a model")
        return demonstration.scenes(8 if n is None else n)
    if target is None:
        raise InputError("target: say what the picture is to become, as a prompt or a class")
    if n is not None:
        raise InputError("n: the picture is one; --n is for the bundled ones")
    denoiser = load_model(model, device, o.call_of(call))
    before, after = o.condition(denoiser, "source", source), o.condition(denoiser, "target", target)
    x, _ = open_source(denoiser, str(image), 1, resize).rows(0, 1)
    words = f"from {source or 'whatever it shows'} to {target}"
    return demonstration.Subject(denoiser, x, before, after, [words])


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
