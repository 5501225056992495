"""Whether what a pipeline hands its scheduler is a field: a function of the latents and the time alone.

A short call is asked for the same latents and time at several of its steps, with other latents in between, and the
first answer of a long call is compared with that of the short one. What these few steps may miss is refused by name:
windows of steps, guiders with them, caches, and dropout. Every kind of request is checked once, as guidance or another
input may bring a window in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ._configs import settings_of

if TYPE_CHECKING:
    from ._line import Line

CHECKED = 4
"""The number of steps of the short call."""
_WHOLE_RUN = {
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "cfg_trunc_ratio": 1.0,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "use_dynamic_cfg": False,
}
"""Windows of steps in the arguments of calls, and the value at which they are open all the time."""
_NO_FIELD = "so that it is no field"


def check_inputs(pipe: Any, call: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse windows of steps, guiders with them, caches and dropout.

    Args:
        pipe: The pipeline.
        call: The arguments of its call.
        defaults: The values of those that are not given.

    Raises:
        InputError: There is one.
    """
    given = {**defaults, **call}
    for name, whole in _WHOLE_RUN.items():
        value = given.get(name, whole)
        values = value if isinstance(value, list | tuple) else [value]
        if any(v is not None and v != whole for v in values):
            raise InputError(f"{name}: got {value!r}, a window of steps, {_NO_FIELD}; give {whole!r}")
    if given.get("skip_guidance_layers") and (
        given.get("skip_layer_guidance_start", 0.0) > 0.0 or given.get("skip_layer_guidance_stop", 1.0) < 1.0
    ):
        raise InputError(
            "skip_guidance_layers: acts in a window of steps; give skip_layer_guidance_start=0.0 and "
            f"skip_layer_guidance_stop=1.0 as well, else it is {_NO_FIELD.removeprefix('so that it is ')}"
        )
    for name in ("guider", "ocr_guider"):
        for key, value in settings_of(getattr(pipe, name, None)).items():
            open_at = 0.0 if key.endswith("start") else 1.0 if key.endswith("stop") else None
            if open_at is not None and value not in (None, open_at):
                raise InputError(f"pipeline: its {name} has {key}={value}, a window of steps, {_NO_FIELD}")
    for name, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            _check_module(name, module)


def _check_module(name: str, module: torch.nn.Module) -> None:
    """Refuse networks that reuse what they have computed for another step, or that draw."""
    on = bool(getattr(module, "is_cache_enabled", False))
    for part in module.modules():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        on = on or any("cache" in key or "broadcast" in key or key.startswith("mag") for key in hooks)
        if part.training and isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0.0:
            raise InputError(f"pipeline: its {name} is in training mode and drops out; call pipe.{name}.eval()")
    if on:
        raise InputError(
            f"pipeline: a cache is on for its {name}, which answers with what it computed for earlier steps; switch it "
            f"off (pipe.{name}.disable_cache())"
        )


def processors_of(pipe: Any) -> dict[str, dict[str, Any]]:
    """The attention processors of a pipeline's networks."""
    parts = {name: getattr(part, "attn_processors", None) for name, part in pipe.components.items()}
    return {name: dict(found) for name, found in parts.items() if isinstance(found, dict)}


def check_processors(pipe: Any, before: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse calls that exchange parts of the networks while they run, which others share; the parts are put back.

    Args:
        pipe: The pipeline.
        before: Its processors before the call.

    Raises:
        InputError: They have been exchanged.
    """
    for name, processors in processors_of(pipe).items():
        if any(processors.get(key) is not value for key, value in before[name].items()):
            getattr(pipe, name).set_attn_processor(dict(before[name]))
            raise InputError(
                f"pipeline: {type(pipe).__name__} exchanges the attention of its {name} while its call runs (perturbed "
                "attention guidance does), which all who share the network would see; give pag_scale=0.0, or keep the "
                "pipeline's own call with a steadyflow solver as its scheduler"
            )


def check_field(line: Line, name: str, level: float, *, finishes: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Ask a short call, and check that its answers are a field.

    Args:
        line: The call.
        name: The class of the pipeline.
        level: The noise level at its first time.
        finishes: Whether the call can be left to end, so that a second loop would be seen.

    Returns:
        The latents with which it began, and its first outputs.

    Raises:
        InputError: They are not.
    """
    begun = [line.samples[k].clone() for k in sorted(line.samples)]
    outputs = [output.clone() for output in line.answer()]
    if any(o.shape[0] != p.shape[0] for o, p in zip(outputs, begun, strict=True)):
        raise InputError(f"pipeline: {name} hands its scheduler outputs of another batch than its latents")
    generator = torch.Generator().manual_seed(1)
    moved = [p + torch.randn(p.shape, generator=generator).to(p) for p in begun]
    before: list[Tensor] = []
    for k, given in enumerate((moved, moved, begun)):
        line.ask(given, line.first, level)
        _check_handed(line, name, given)
        expected = (None, before, outputs)[k]
        if expected is None:
            before += [output.clone() for output in line.answer()]
        elif not all(map(agree, line.answer(), expected)):
            raise InputError(
                f"pipeline: {name} gives two answers at the same latents and time: its output depends on the number of "
                "the step or on earlier steps (a window of steps, a guider with a memory, for which pipe.guider may be "
                f"set to one without, a cache, noise that is drawn inside), {_NO_FIELD}"
            )
    if finishes:  # a second loop would begin now
        line.finish(begun)
    return begun, outputs


def _check_handed(line: Line, name: str, given: Sequence[Tensor]) -> None:
    """Check that the networks were called at the latents and the time that were handed over."""
    for k, sample in enumerate(given):
        if not agree(line.samples[k], sample):
            raise InputError(
                f"pipeline: {name} changes the latents between its steps (a mask that is blended in, noise that is "
                "added), so that they are not the state of one path; for masks there is sf.edit(mask=...) on the "
                "pipeline without one"
            )
        told = line.told[k]
        if isinstance(told, Tensor | int | float) and abs(float(told) - line.first) > 1e-3 * abs(line.first):
            raise InputError(
                f"pipeline: {name} hands its scheduler the time {float(told):g} where it was asked for "
                f"{line.first:g}: its loop goes by the number of the step"
            )


def agree(a: Tensor, b: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two results of the same computation agree; only accelerators may round otherwise from run to run.

    Args:
        a: One.
        b: The other.
        tolerance: Of accelerators, and where other shapes were computed, as a share of the largest value.
    """
    if a.shape != b.shape:
        return False
    a, b = a.detach().double(), b.detach().double()
    scale = float(b.abs().amax()) if b.numel() else 0.0
    share = tolerance if a.device.type != "cpu" else min(tolerance, 1e-6)
    return bool(((a - b).abs() <= share * scale).all())


def same_rows(outputs: Tensor, one: Tensor) -> bool:
    """Whether all rows of outputs are the same as the only row of others."""
    whole, scale = one.expand(outputs.shape), float(one.abs().amax())
    return bool(((outputs - whole).abs() <= 1e-3 * scale).all())


def check_transforms(x: Tensor) -> None:
    """Refuse tensors of torch.func, whose transforms do not reach another thread."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            "derivatives: torch.func's transforms do not reach a served pipeline; use torch.autograd, whose gradients "
            "do"
        )
