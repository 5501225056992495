"""`steadyflow edit`: samples of a class model, or pictures through a text-to-image pipeline."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import (
    BatchSize,
    Coordinates,
    GridName,
    Guidance,
    Input,
    Json,
    Model,
    Nfe,
    Number,
    Out,
    Resize,
    Seed,
    SolverName,
    Steps,
    count_steps,
    make_solver,
    read_input,
    tell,
    to_images,
)

METHODS = ("inversion", "direct", "flowedit", "rf-inversion")


def edit(
    target: Annotated[str, typer.Option(help="What to move to: a class, or a prompt.")],
    model: Model = "digits",
    input: Input = None,
    n: Number = 16,
    source: Annotated[str | None, typer.Option(help="What the input is, if known: its class, or a prompt.")] = None,
    guidance: Guidance = 3.0,
    source_guidance: Annotated[float, typer.Option(help="Guidance of the inversion; below 1 is smoother.")] = 1.0,
    strength: Annotated[
        float | None, typer.Option(help="How far up to go, in (0, 1]; less keeps more. 1, but for flowedit.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "inversion",
    share: Annotated[
        float, typer.Option(help="With --method direct, how strongly each step is drawn to the inversion's states.")
    ] = 0.1,
    mask: Annotated[
        Path | None, typer.Option(help="A picture, white where something may change; the rest stays.")
    ] = None,
    smooth: Annotated[float | None, typer.Option(help="Average the field over neighbours of this radius.")] = None,
    lora: Annotated[Path | None, typer.Option("--smooth-lora", help="Smooth Diffusion's LoRA, or another.")] = None,
    smooth_when: Annotated[str, typer.Option(help="both, inversion or generation.")] = "both",
    solver: SolverName = "ees25",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "quadratic",
    coordinates: Coordinates = None,
    resize: Resize = False,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="Where to save the inversion, for more edits of it.")] = None,
    saved: Annotated[Path | None, typer.Option("--from", help="A saved inversion to start from.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Move samples to another class, or pictures to another prompt.

    They are inverted under the source and generated under the target; or moved without an inversion, as --method says.
    """
    from ..datasets import arrays
    from ..loading import load_model
    from ..metrics import rmse
    from ..tasks import Inversion, invert
    from ..tasks.edit_methods import flow_edit, rf_inversion

    if method not in METHODS:
        raise InputError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    denoiser = load_model(model)
    goal = _condition(denoiser, "target", target)
    x: Any = None
    labels: Any = None
    if saved is None:
        x, labels = read_input(denoiser, input, n, resize, None)
    origin = labels if source is None else _condition(denoiser, "source", source)
    if method in ("flowedit", "rf-inversion"):
        if saved is not None or save is not None or mask is not None or nfe is not None:
            raise InputError(f"method: {method} makes no inversion to save, load or mask; its cost is set by --steps")
        if smooth is not None or lora is not None or (strength is not None and method == "rf-inversion"):
            raise InputError(f"method: {method} takes no smoothing" + (", nor a strength" if strength else ""))
        given = {"strength": strength, "steps": steps}
        options = {"source": origin, "guidance": guidance, "seed": seed}
        flow = flow_edit if method == "flowedit" else rf_inversion
        moved = flow(denoiser, x, goal, **options, **{k: v for k, v in given.items() if v is not None})
        edited = moved.x
        figures = {"method": method, "samples": len(x), "steps": moved.steps, "nfe": moved.nfe}
    else:
        above, below = _smoothed(denoiser, denoiser.with_condition(goal).with_guidance(guidance), smooth, lora, smooth_when)
        held = method == "direct" or mask is not None
        if held and (saved is not None or batch_size is not None):
            raise InputError("mask, --method direct: need the states of an inversion of the whole batch made now")
        if saved is not None:
            inversion = Inversion.load(saved)
        else:
            chosen = make_solver(solver, coordinates)
            inversion = invert(
                above.with_condition(origin).with_guidance(source_guidance),
                x,
                solver=chosen,
                steps=count_steps(chosen, steps, nfe, 16),
                grid=grid,
                strength=1.0 if strength is None else strength,
                batch_size=batch_size,
                record="all" if held else None,
            )
        if save is not None:
            inversion.save(save)
        corrections = [_anchor(inversion, denoiser, method, share, mask)] if held else []
        back = inversion.decode(below, corrections=corrections, batch_size=batch_size)
        edited = back.x
        figures = {
            "solver": inversion.solver.name,
            "samples": len(edited),
            "steps each way": inversion.steps,
            "nfe": (0 if saved is not None else inversion.nfe) + back.nfe,
        }
    if out is not None:
        arrays.write(out, to_images(denoiser, edited))
    if x is not None:
        figures["distance median"] = rmse(edited, x).median().item()
    figures["max |x|"] = edited.abs().max().item()
    if denoiser.name == "digits":
        from steadyflow_lab.digits import recognise

        figures["recognised as target"] = (recognise(edited) == goal).float().mean().item()
    tell(figures, as_json, out)


def _condition(model: Any, name: str, given: str) -> Any:
    """A class as a number, or a prompt."""
    from ..loading import takes_prompts

    if takes_prompts(model):
        return given
    try:
        return int(given)
    except ValueError:
        raise InputError(f"{name}: got {given!r}, but {model.name!r} takes classes, which are numbers") from None


def _smoothed(model: Any, below: Any, radius: float | None, lora: Path | None, when: str) -> tuple[Any, Any]:
    """The models of the way up and of the way down, each smoothed or not."""
    from ..tasks.editing import either_way

    if lora is not None and not hasattr(model, "with_lora"):
        raise InputError(f"smooth-lora: the model {model.name!r} is no pipeline")
    net = None if lora is None else model.with_lora(lora).net

    def change(one: Any) -> Any:
        one = one if net is None else dataclasses.replace(one, net=net)
        return one if radius is None else one.with_smoothing(radius)

    return either_way(change, model, below, when)  # type: ignore[arg-type]  # `when` is checked there


def _anchor(inversion: Any, model: Any, method: str, share: float, mask: Path | None) -> Any:
    """What holds the edit near the inversion's states: outside a mask wholly, else by a share."""
    from ..corrections import Anchor

    if mask is None:
        return Anchor(inversion.trajectory, share)
    return Anchor(inversion.trajectory, share if method == "direct" else 1.0, 1.0 - _mask(mask, model))


def _mask(path: Path, model: Any) -> Any:
    """The share of white in the picture's area behind each place of a sample, (1, 1, h, w)."""
    from torch.nn import functional

    from ..datasets import arrays

    size = getattr(model, "image_shape", model.shape)
    white = (arrays.read(path, (1, *size[1:]), resize=True) + 1.0) / 2.0
    return functional.adaptive_max_pool2d(white, model.shape[1:])
