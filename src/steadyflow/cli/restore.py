"""`steadyflow restore`: draws samples of what a damaged picture was, given how it was damaged."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from . import completion
from . import options as o

TASKS = ("inpaint", "deblur", "superres")
_FACTOR, _BLUR, _NOISE = 2, 1.0, 0.05


def restore(
    picture: Annotated[
        Path | None,
        typer.Argument(
            metavar="PICTURE",
            help="The damaged picture, or an array that holds one. It has the model's size, or for superres is smaller "
            "by the factor. With --damage, a whole picture; by default one of the model's own held-out data.",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="What happened to the picture: inpaint (parts are missing, see --mask), deblur, superres.",
            autocompletion=completion.one_of(*TASKS),
        ),
    ] = "inpaint",
    model: o.Model = "digits",
    call: o.Call = None,
    label: o.Label = None,
    prompt: o.Prompt = None,
    guidance: o.Guidance = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="For inpaint: a picture that is white where something is missing; the rest was measured."),
    ] = None,
    factor: Annotated[
        int | None,
        typer.Option(
            help="For superres: how many pixels, each way, make one pixel of the small picture; 2 by default."
        ),
    ] = None,
    blur: Annotated[
        float | None,
        typer.Option(help="For deblur: the standard deviation of the Gaussian blur, in pixels; 1 by default."),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="The standard deviation of the noise in the damaged picture, where pixel values lie in [-1, 1]; 0.05 "
            "by default."
        ),
    ] = None,
    damage: Annotated[
        bool,
        typer.Option(
            "--damage",
            help="Damage a whole picture first, noise included, and report how far the samples are from the whole one.",
        ),
    ] = False,
    resize: o.Resize = False,
    method: Annotated[
        str,
        typer.Option(
            help="mmps (moment matching), pigdm, dps or ddrm; docs/inverse.md says what each costs.",
            autocompletion=completion.one_of("mmps", "pigdm", "dps", "ddrm"),
        ),
    ] = "mmps",
    iterations: Annotated[int | None, typer.Option(help="For mmps: rounds of its linear solver; 3 by default.")] = None,
    zeta: Annotated[float | None, typer.Option(help="For dps: the strength; 1 by default.")] = None,
    prior_variance: Annotated[
        float | None, typer.Option(help="For pigdm: the variance of the data's numbers; 1 by default.")
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(help="For ddrm: the share of fresh noise where nothing or little is measured; 0.85 by default."),
    ] = None,
    eta_b: Annotated[
        float | None, typer.Option(help="For ddrm: the pull towards what is measured well; 1 by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="How many samples to draw.")] = 4,
    solver: Annotated[
        str | None,
        typer.Option(
            help="A solver's name (see `steadyflow solvers`); by default ddpm, for ddrm ddim.",
            autocompletion=completion.solver,
        ),
    ] = None,
    coordinates: o.Coordinates = None,
    steps: o.Steps = None,
    nfe: Annotated[
        int | None,
        typer.Option(
            help="Calls of the model by the solver, 48 by default; each costs several evaluations here, but for ddrm."
        ),
    ] = None,
    grid: o.Grid = None,
    seed: o.Seed = None,
    index: o.Index = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    double: o.Double = False,
    out: o.Out = None,
    as_json: o.Json = False,
) -> None:
    """Draw samples of what a damaged picture was, given how it was damaged.

    Where something was measured, the samples fit it, within its noise; elsewhere they look like the model's data.
    """
    import torch

    from .. import sample
    from .._internal.given import number, whole
    from ..corrections import Posterior
    from ..datasets import media
    from ..errors import InputError, UnknownNameError
    from ..loading import load_model

    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    for name, value, own in (("mask", mask, "inpaint"), ("factor", factor, "superres"), ("blur", blur, "deblur")):
        if value is not None and task != own:
            raise InputError(f"{name}: only valid with the task {own}, got the task {task}")
    if picture is None and not damage:
        raise InputError("picture: give the damaged picture, or --damage for one of the model's own held-out data")
    if guidance is not None and label is None and prompt is None:
        raise InputError(f"guidance: got {guidance}, but no condition to guide to; give --label or --prompt")
    count = whole("samples", samples, 1)
    deviation = number("noise", _NOISE if noise is None else noise, "a positive number")
    denoiser = load_model(model, device, o.call_of(call))
    if out is not None:
        media.check_writes(out, denoiser, n=count)
    conditioned = _conditioned(denoiser, label, prompt)
    dtype = torch.float64 if double else torch.float32
    operator, shape = _operator(denoiser, task, mask, factor, blur, damage, resize)
    truth = _picture(denoiser, picture, shape, resize, label).to(device=device, dtype=dtype)
    y = operator(truth) if damage or task == "inpaint" else truth
    if damage:
        from .. import noise as random

        fresh = random.like(y, 0 if seed is None else seed, random.PERTURBATION, (7, 0, 0))
        y = y + deviation * fresh
    given = o.given(iterations=iterations, zeta=zeta, prior_variance=prior_variance, eta=eta, eta_b=eta_b)
    how = Posterior(_decoding(denoiser, operator), y, deviation, method, **given)  # pyright: ignore[reportArgumentType]
    default = "ddim" if method == "ddrm" else "ddpm"
    words: dict[str, Any] = o.given(guidance=guidance, steps=steps, nfe=nfe, grid=grid, seed=seed, index=index)
    words |= {"batch_size": 64 if batch_size is None else batch_size, "corrections": [how]}
    found = sample(
        conditioned,
        n=count,
        dtype=dtype,
        device=device,
        solver=_solver(solver, coordinates, default),
        **words,
    )
    figures: dict[str, Any] = {"samples": count, "evaluations": found.nfe}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        misfit = how.check(found.x)
    figures |= {"misfit": float(misfit.mean()), "largest misfit": float(misfit.max())}
    pictures: Any = denoiser.decode(found.x) if hasattr(denoiser, "decode") else found.x  # pyright: ignore
    if damage:
        figures |= _distances(pictures, truth)
    if told:
        figures["warning"] = str(told[-1].message)
    if out is not None and out.suffix:
        media.write(out, pictures, denoiser)
    elif out is not None:
        media.write_each(out, pictures, 0, model=denoiser)
    o.print_figures(figures, as_json, out)


def _solver(solver: str | None, coordinates: str | None, default: str) -> Any:
    """The solver, in the coordinates that were asked for."""
    from ..solvers import registry

    found = o.solver_spec(solver, coordinates, default)
    return default if found is None else registry.from_spec(found) if isinstance(found, dict) else found


def _conditioned(model: Any, label: int | None, prompt: str | None) -> Any:
    """The model under what was said of the picture."""
    from ..errors import InputError
    from ..loading import takes_prompts

    if prompt is not None and not takes_prompts(model):
        raise InputError(f"prompt: got {prompt!r}, but {model.name!r} takes classes; give --label")
    if label is not None and takes_prompts(model):
        raise InputError(f"label: got {label}, but {model.name!r} takes prompts; give --prompt")
    condition = prompt if label is None else label
    return model if condition is None else model.with_condition(condition)


def _operator(
    model: Any, task: str, mask: Path | None, factor: int | None, blur: float | None, damage: bool, resize: bool
) -> tuple[Any, tuple[int, ...]]:
    """What is measured of the model's pictures, and the shape of the picture that is given."""
    from .. import operators
    from .._internal.kinds import decoded_shape, kind_of
    from ..datasets import media
    from ..errors import InputError

    if kind_of(model) != "pictures":
        raise InputError(f"model: {model.name!r} is no model of pictures, which this command restores")
    shape = decoded_shape(model)
    if task == "inpaint":
        if mask is None:
            raise InputError("mask: the task inpaint needs a picture that is white where something is missing")
        white = media.read_mask(mask, model)
        if not resize:
            _check_size(mask, shape)
        if not bool((white >= 0.5).any()):
            raise InputError(f"mask: {mask} has no white pixel, so that nothing is missing")
        return operators.Inpainting((white < 0.5).expand(shape)), shape
    if task == "deblur":
        return operators.Blur(_BLUR if blur is None else blur), shape
    operator = operators.Downsampling(_FACTOR if factor is None else factor)
    if shape[-1] % operator.factor or shape[-2] % operator.factor:
        raise InputError(f"factor: got {operator.factor}, expected a divisor of the model's {shape[-2]} x {shape[-1]}")
    small = (shape[0], shape[1] // operator.factor, shape[2] // operator.factor)
    return operator, shape if damage else small


def _check_size(mask: Path, shape: tuple[int, ...]) -> None:
    """Refuse a mask of another size than the picture."""
    from .._internal.pictures import pillow
    from ..errors import InputError

    with pillow().open(mask) as opened:
        width, height = opened.size
    if (height, width) != tuple(shape[-2:]):
        raise InputError(
            f"mask: {mask} has {height} x {width} pixels, the model's pictures {shape[-2]} x {shape[-1]}; give "
            "--resize to scale it"
        )


def _picture(model: Any, path: Path | None, shape: tuple[int, ...], resize: bool, label: int | None) -> Any:
    """The one picture that is given, or the first of the model's held-out data."""
    from ..datasets import arrays
    from ..datasets.sources import open_source
    from ..errors import InputError

    if path is None:
        if resize:
            raise InputError("resize: held-out data have the model's size; give it for a picture of your own")
        if hasattr(model, "decode"):
            raise InputError(f"picture: {model.name!r} has no held-out pictures of its own; give one")
        return open_source(model, None, 1, False, label).rows(0, 1)[0]
    if path.suffix.lower() not in arrays.PICTURES and resize:
        raise InputError(f"resize: scales pictures, and {path} is none")
    found = arrays.read(path, shape, resize=resize)
    if len(found) != 1:
        raise InputError(f"picture: {path} holds {len(found)} pictures, expected one")
    return found


def _decoding(model: Any, operator: Any) -> Any:
    """The operator on the model's samples, which are decoded first where they are latents."""
    latent = hasattr(model, "decode") and getattr(model, "codec", True) is not None
    return (lambda x: operator(model.decode(x))) if latent else operator


def _distances(pictures: Any, truth: Any) -> dict[str, float]:
    """How far samples, and their mean, are from the truth, in decibels."""
    import math

    def decibels(x: Any) -> float:
        error = float((x - truth.to(x)).square().mean())
        return 10.0 * math.log10(4.0 / error) if error > 0.0 else math.inf

    each = [decibels(x) for x in pictures.split(1)]
    return {"psnr": sum(each) / len(each), "psnr of the mean": decibels(pictures.mean(0, keepdim=True))}
