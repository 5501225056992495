"""The command line: `steadyflow sample | invert | reconstruct | edit | restore | diagnose | tune | ...`.

It parses, calls the verbs, and prints. Errors that steadyflow raises on purpose are printed in one line, with exit
status 1; `--debug` before the command shows where they came from.
"""

import sys
from typing import Annotated

import typer

from .._version import __version__
from ..errors import SteadyflowError
from .compare import compare
from .diagnose import diagnose
from .doctor import doctor
from .edit import edit
from .extensions import WithExtensions
from .invert import invert
from .reconstruct import reconstruct
from .restore import restore
from .runs import runs
from .sample import sample
from .solvers import solvers
from .tune import tune

app = typer.Typer(
    name="steadyflow",
    cls=WithExtensions,
    help="Sample, invert, reconstruct, edit, restore and diagnose diffusion and flow models, stably.",
    epilog="Exit status: 0 done; 1 an error, printed in one line (--debug shows where it came from); 2 wrong usage; "
    "3 a run was finished without some of its samples, which it names; 130 stopped by Ctrl-C. "
    "Example: steadyflow diagnose --n 16 --solver ddim --steps 50",
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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


app.command(epilog="Example: steadyflow sample --n 64 --label 7 --guidance 2 --out sevens.png")(sample)
app.command(epilog="Example: steadyflow invert --input photographs --model sd-folder --solver ees25 --run inverted")(
    invert
)
app.command(epilog="Example: steadyflow reconstruct --input seven.png --label 7 --nfe 48 --out back.png")(reconstruct)
app.command(
    epilog="Example: steadyflow edit --model ink --image seven.png --source 'a handwritten seven' "
    "--target 'a handwritten two' --guidance 5 --out two.png"
)(edit)
app.command(
    epilog="Example: steadyflow restore holed.png --task inpaint --mask hole.png --model digits --out restored.png"
)(restore)
app.command(epilog="Example: steadyflow diagnose --n 16 --solver ddim --steps 50 --verify --out diagnosis")(diagnose)
app.command(epilog="Example: steadyflow compare --label 3 --nfe 16 --other-nfe 8 --out comparison")(compare)
app.command(epilog="Example: steadyflow tune --nfe 8 --out fast.json, then steadyflow sample --solver fast.json")(tune)
app.command(epilog="Example: steadyflow solvers --plot regions.png --names ees25,rex-euler")(solvers)
app.command(epilog="Example: steadyflow doctor")(doctor)
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
