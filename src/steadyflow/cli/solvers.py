"""`steadyflow solvers`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from . import completion
from .options import Json, check_place, print_json, table


def solvers(
    plot: Annotated[Path | None, typer.Option(help="Draw the stability regions into this file.")] = None,
    names: Annotated[
        str | None,
        typer.Option(help="Which solvers, separated by commas; all by default.", autocompletion=completion.solvers),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the solvers with their facts, or draw their stability regions."""
    from ..solvers import registry

    chosen = None if names is None else [name.strip() for name in names.split(",")]
    if plot is not None:
        from .._internal import plots
        from ..diagnostics import scheme_figure, stability_region
        from ..solvers import Tuned

        plots.check_kind(plot)
        check_place("plot", plot)
        alone = registry.get(chosen[0]) if chosen is not None and len(chosen) == 1 else None
        drawn = scheme_figure(alone) if isinstance(alone, Tuned) else stability_region.figure(chosen)
        plots.save(drawn, plot)
        if as_json:
            print_json({"written to": str(plot)})
        else:
            typer.echo(f"written to {plot}")
        return
    facts = {name: dataclasses.asdict(registry.get(name).properties) for name in chosen or registry.names()}
    if as_json:
        print_json(facts)
        return
    typer.echo(table(*registry.properties_table(list(facts)), left=(0, 3, 6)))
