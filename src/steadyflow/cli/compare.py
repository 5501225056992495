"""`steadyflow compare`."""

from typing import Annotated, Any

import typer

from . import completion
from . import options as o


def compare(
    model: o.Model = "digits",
    call: o.Call = None,
    other: Annotated[
        str | None,
        typer.Option(
            help="The variant, as --model takes it; the same model by default.", autocompletion=completion.models
        ),
    ] = None,
    other_dtype: Annotated[
        str | None,
        typer.Option(
            help="The precision of the variant's network: float32, bfloat16 or float16.",
            autocompletion=completion.one_of("float32", "bfloat16", "float16"),
        ),
    ] = None,
    other_solver: Annotated[
        str | None,
        typer.Option(
            help="The solver of the variant's run; by default that of the plain one.", autocompletion=completion.solver
        ),
    ] = None,
    other_steps: Annotated[int | None, typer.Option(help="Solver steps of the variant's run.")] = None,
    other_nfe: Annotated[int | None, typer.Option(help="Model evaluations of the variant's run.")] = None,
    other_grid: Annotated[
        str | None, typer.Option(help="The grid of the variant's run.", autocompletion=completion.grid)
    ] = None,
    n: o.Number = None,
    label: o.Label = None,
    prompt: o.Prompt = None,
    guidance: o.Guidance = None,
    solver: o.Solver = None,
    coordinates: o.Coordinates = None,
    steps: o.Steps = None,
    nfe: o.Nfe = None,
    grid: o.Grid = None,
    strength: o.Strength = None,
    t_min: o.TimeMin = None,
    t_max: o.TimeMax = None,
    seed: o.Seed = None,
    index: o.Index = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of the reference solves; a thousandth of the error, within 1e-10 and 1e-5.")
    ] = None,
    device: o.Device = "cpu",
    double: o.Double = False,
    out: o.Folder = None,
    as_json: o.Json = False,
) -> None:
    """Measure what a variant of a model or of a sampler costs, against the exact journey of the plain one.

    The variant has another model, precision, solver, or number of steps. --out writes a picture and the figures.
    """
    import torch

    from .._internal import files, plots, strict_json
    from ..diagnostics import compare as measure
    from ..loading import load_model
    from ..solvers import registry

    if out is not None:
        plots.require()
        o.check_place("out", out, folder=True)
    words = o.given(guidance=guidance, steps=steps, nfe=nfe, grid=grid, strength=strength, t_min=t_min, t_max=t_max)
    words |= o.given(seed=seed, index=index, tolerance=tolerance)
    changed: Any = o.given(solver=other_solver, steps=other_steps, nfe=other_nfe, grid=other_grid)
    chosen = o.solver_spec(solver, coordinates)
    if chosen is not None:
        words["solver"] = registry.from_spec(chosen) if isinstance(chosen, dict) else chosen
    inputs, given = o.call_of(call), (label, prompt, guidance)
    plain = load_model(model, device, inputs)
    variant = _variant(model, other, other_dtype, device, inputs)
    precise = None
    if getattr(plain, "family", None) is not None and ":" not in model:  # a pipeline, which is loaded once more
        precise = _conditioned(load_model(model, device, inputs, dtype=torch.float64), *given)
    found = measure(
        _conditioned(plain, *given),
        None if variant is None else _conditioned(variant, *given),
        changed=changed,
        n=16 if n is None else n,
        precise=precise,
        dtype=torch.float64 if double else torch.float32,
        device=device,
        **words,
    )
    if as_json:
        o.print_json(found.figures())
    else:
        typer.echo(found.summary())
    if out is not None:
        picture, figures = out / "comparison.png", out / "comparison.json"
        found.draw(picture)
        files.write_text(figures, strict_json.dumps(found.figures(), indent=2))
        typer.echo(f"picture: {picture}\nfigures: {figures}", err=as_json)


def _conditioned(model: Any, label: int | None, prompt: str | None, guidance: float | None) -> Any:
    """The model under the condition that was given."""
    from ..loading import apply_condition

    return apply_condition(model, label, prompt, guidance=guidance)


def _variant(name: str, other: str | None, dtype: str | None, device: str, inputs: dict[str, str] | None) -> Any:
    """The model of the variant, or None where it is the plain one."""
    import torch

    from ..diagnostics import in_precision
    from ..errors import InputError
    from ..loading import load_model

    if dtype is None:
        return None if other is None else load_model(other, device, inputs)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise InputError(f"other_dtype: got {dtype!r}, expected one of {', '.join(known)}")
    name = name if other is None else other
    model = load_model(name, device, inputs)
    if getattr(model, "pipe", None) is not None and ":" not in name:
        return load_model(name, device, inputs, dtype=known[dtype])
    lower = in_precision(model, known[dtype])
    if lower is model:
        raise InputError(f"other_dtype: the network of {name!r} is no torch module, whose precision could be changed")
    return lower
