"""`steadyflow edit`: samples of a class model, or pictures through a text-to-image pipeline."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import completion
from . import options as o
from .runs import RunLocation, perform, report


def edit(
    target: Annotated[str, typer.Option(help="What to move to: a class, or a prompt.")],
    model: o.Model = "digits",
    call: o.Call = None,
    input: o.Input = None,
    n: o.Number = None,
    resize: o.Resize = False,
    frames: o.Frames = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="What the input is, if known: its class, or a prompt. Of held-out data, a class also says which."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="inversion (the default), direct, rf-inversion, flow-edit, flow-align, dvrf, "
            "prompt-to-prompt, plug-and-play, masactrl, value-injection, noise-maps, uni-edit, pmi, dna-edit or "
            "flow-opt; with options as in uni-edit:omega=3,empty=false or rf-inversion:window=0/0.4.",
            autocompletion=completion.method,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Of direct: how strongly each step is drawn to the inversion's states, in (0, 1]; of value-injection: "
            "for which share of the steps values are the source's."
        ),
    ] = None,
    average: Annotated[
        int | None,
        typer.Option(help="Of flow-edit, flow-align and dvrf: how many noises are averaged per evaluation."),
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Of rf-inversion: the pull towards noise on the way up.")] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            help="Of rf-inversion: the pull towards the source downwards; of dvrf: how far the target's point moves "
            "along with the edit; of dna-edit: how much the target leads."
        ),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Of rf-inversion: the share of the steps with that pull, such as 0,0.4.")
    ] = None,
    guidance: o.Guidance = None,
    source_guidance: o.SourceGuidance = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A picture, white where something may change; the rest stays. For videos also a video."),
    ] = None,
    smooth: Annotated[float | None, typer.Option(help="Average the field over neighbours of this radius.")] = None,
    lora: Annotated[Path | None, typer.Option("--smooth-lora", help="Smooth Diffusion's LoRA, or another.")] = None,
    smooth_when: Annotated[
        str | None,
        typer.Option(
            help="On which ways to smooth: both (the default), inversion or generation.",
            autocompletion=completion.one_of("both", "inversion", "generation"),
        ),
    ] = None,
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
    noise: o.Noise = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    double: o.Double = False,
    saved: Annotated[
        Path | None, typer.Option("--from", help="A saved inversion to start from, instead of samples.")
    ] = None,
    save: o.Save = None,
    out: o.Out = None,
    run: o.Run = None,
    engine: o.Engine = None,
    address: o.Address = None,
    workers: o.Workers = None,
    shard: o.Shard = None,
    strict: o.Strict = False,
    check_inputs: o.CheckInputs = None,
    recompute_changed: o.RecomputeChanged = False,
    model_version: o.ModelVersion = None,
    as_json: o.Json = False,
) -> None:
    """Move samples to another class, or pictures to another prompt.

    They are inverted under the source and generated under the target; or moved without an inversion, as --method says.
    """
    from .. import editing
    from ..loading import load_model
    from ..runs import Editing
    from ..tasks import Inversion

    care = o.given(strict=strict, check_inputs=check_inputs, recompute_changed=recompute_changed)
    care |= o.given(model_version=model_version)
    place = RunLocation(run, engine, address, workers, shard, care)
    place.refuse(save=save)
    o.check_place("save", save)
    denoiser = load_model(model, device, o.call_of(call))
    special = o.given(share=share, average=average, gamma=gamma, eta=eta, window=_window(window))
    way = None if method is None and not special else editing.get(method or "inversion", **special)
    _check_saved(way, save, saved, coordinates)
    words = o.given(
        input=input, resize=resize, frames=frames, source=o.condition(denoiser, "source", source), method=way
    )
    words |= o.given(guidance=guidance, source_guidance=source_guidance, smoothing=smooth, smooth=smooth_when)
    words |= {name: str(path) for name, path in o.given(mask=mask, lora=lora, inversion=saved).items()}
    words |= o.given(steps=steps, nfe=nfe, grid=grid, strength=strength, t_min=t_min, t_max=t_max)
    words |= o.given(seed=seed, index=index, noise=noise, block=batch_size, double=double)
    words |= o.given(call_inputs=o.call_of(call))
    words["solver"] = o.solver_spec(solver, coordinates, None if way is None else way.defaults.get("solver"))
    words["target"] = o.condition(denoiser, "target", target)
    count = _count(denoiser, input, n, resize, words.get("source"), saved, frames)
    done = perform(Editing(model, n=count, device=device, **words), place, denoiser, out=out)
    if save is not None:
        Inversion.concatenate([part.kept for part in done.parts()]).save(save)
    report(done, place, as_json, out or save)


def _window(given: str | None) -> tuple[float, float] | None:
    """Two numbers with a comma between them."""
    from ..errors import InputError

    if given is None:
        return None
    try:
        first, last = map(float, given.split(","))
    except ValueError:
        raise InputError(f"window: got {given!r}, expected two numbers, such as 0,0.4") from None
    return first, last


def _check_saved(way: Any, save: Path | None, saved: Path | None, coordinates: str | None) -> None:
    """Raise `InputError` where there will be no new inversion to save, or to choose coordinates for."""
    from ..errors import InputError

    if coordinates is not None and saved is not None:
        raise InputError("coordinates: the inversion that is given has fixed them")
    if save is not None and saved is not None:
        raise InputError("save: nothing is inverted; the inversion is the one that is given with --from")
    if save is not None and way is not None and "inversion" in way.refuses:
        raise InputError(f"save: method {way.name!r} makes no inversion that can be saved")


def _count(
    model: Any, path: str | None, n: int | None, resize: bool, source: Any, saved: Path | None, frames: str | None
) -> int:
    """How many samples are edited."""
    if saved is None:
        return o.count_samples(model, path, n, resize, source, frames)
    from ..tasks import Inversion

    there = len(Inversion.load(saved).latent)
    return there if n is None else min(n, there)
