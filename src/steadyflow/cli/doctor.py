"""`steadyflow doctor`."""

import dataclasses
import itertools
from typing import Annotated, Any

import typer

from .options import Json, print_json


def doctor(
    imports: Annotated[
        bool,
        typer.Option(
            "--imports", help="Also import every extra that is installed, which finds damaged ones; some seconds each."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether this installation works: versions, devices, folders, settings, and a self test of a few seconds.

    The exit status is 1 if something is broken; each fault comes with its remedy.
    """
    from ..doctor import examine, faults

    found = examine(imports=imports)
    broken = faults(found)
    if as_json:
        print_json({"ok": not broken, "findings": [dataclasses.asdict(one) for one in found]})
    else:
        _print(found)
    if broken:
        raise typer.Exit(1)


def _print(found: list[Any]) -> None:
    """A line for each finding, by topics, with its remedy below it where something is broken; then how many are."""
    from ..doctor import faults

    wide = max(len(one.name) for one in found)
    for topic, lines in itertools.groupby(found, key=lambda one: one.topic):
        typer.echo(topic)
        for one in lines:
            typer.echo(f"  {one.status}  {one.name:<{wide}}  {one.says}")
            if one.remedy and one.remedy not in one.says:
                typer.echo(f"{'':{wide + 10}}{one.remedy}")
    count = len(faults(found))
    typer.echo("nothing is broken" if not count else f"broken: {count} of {len(found)}, marked with fail above")
