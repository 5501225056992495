"""What is optimised: the latents, the condition, the null condition, or the scale of guidance of every sample.

Whatever it is, an optimiser sees numbers u of shape (B, ...) that begin at 0 and have one size,

    value = start + unit u,

with the unit the standard deviation of the path's start for latents, the root mean square of the start for embeddings,
and 1 for scales. A rate therefore means the same on every path, and the first round is the plain run to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._internal.tensors import rms
from ..denoisers.base import Condition, Denoiser, is_words
from ..errors import InputError, UnknownNameError

OVER = ("noise", "condition", "null", "guidance")
Value = Tensor | dict[str, Tensor]
"""What goes into a sampler in the place of what was given: a tensor, or a mapping of tensors for such conditions."""
_ONE = ""


@dataclass(frozen=True, eq=False)
class Control:
    """What is optimised, from where it begins."""

    over: str
    model: Denoiser
    x: Tensor
    """The starting latents, shape (B, ...)."""
    mean: Tensor
    """The mean of the path's own start."""
    std: Tensor
    """Its standard deviation."""
    first: dict[str, Tensor]
    """What is optimised as it begins, by name, each (B, ...)."""
    units: dict[str, Tensor]
    fixed: dict[str, Tensor]
    """The entries of a condition that are no numbers to optimise, such as masks."""

    @property
    def noise(self) -> Tensor:
        """The standardised noise of the start."""
        return (self.x - self.mean) / self.std

    def zeros(self) -> dict[str, Tensor]:
        """The numbers u at the beginning; in float32 at least."""
        return {
            name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
            for name, value in self.first.items()
        }

    def value(self, u: Mapping[str, Tensor]) -> Value:
        """What goes into the sampler, in the type of what was given."""
        found = {
            name: (self.first[name] + self.units[name] * part).to(self.first[name].dtype) for name, part in u.items()
        }
        return found.get(_ONE, {**found, **self.fixed})

    def applied(self, u: Mapping[str, Tensor]) -> tuple[Denoiser, Tensor]:
        """The model and the latents of a run."""
        value = self.value(u)
        if isinstance(value, Tensor) and self.over == "noise":
            return self.model, value
        if self.over == "condition":
            return self.model.with_condition(value), self.x
        if self.over == "null":
            return self.model.with_negative(value), self.x
        assert isinstance(value, Tensor)
        return self.model.with_guidance(value), self.x

    def projected(self, u: Mapping[str, Tensor], w: Tensor) -> dict[str, Tensor]:
        """The numbers of latents whose noise is w."""
        return {_ONE: w - self.noise}


def control_of(over: object, model: Denoiser, x: Tensor, mean: Tensor, std: Tensor) -> Control:
    """What is to be optimised of a model and its latents.

    Args:
        over: One of `OVER`.
        model: The model, under its condition and guidance.
        x: The starting latents, shape (B, ...).
        mean: The mean of the path's own start.
        std: Its standard deviation.

    Raises:
        InputError: The model has nothing of the kind, or it has no effect there.
    """
    if over not in OVER:
        raise UnknownNameError("over", over, OVER)
    fixed = dict[str, Tensor]()
    if over == "noise":
        first, units = {_ONE: x}, {_ONE: std}
    elif over == "guidance":
        if model.condition is None or model.null is None:
            raise InputError("over: 'guidance' needs a model under a condition, with a null condition to guide from")
        given = model.guidance if model.scale is None else model.scale.detach()
        scale = torch.as_tensor(given, dtype=x.dtype, device=x.device).reshape(-1)
        if len(scale) not in (1, len(x)):
            raise InputError(f"guidance: got {len(scale)} scales for a batch of {len(x)} samples")
        scale = scale.repeat(len(x) // len(scale))
        first, units = {_ONE: scale}, {_ONE: torch.ones((), dtype=x.dtype, device=x.device)}
    else:
        given = model.condition if over == "condition" else model.null
        _check_effect(over, model)
        first, fixed = _embeddings(over, given, x)
        units = {name: _unit(value) for name, value in first.items()}
    return Control(over, model, x, mean, std, first, units, fixed)


def _unit(value: Tensor) -> Tensor:
    """The root mean square of each sample's numbers, shaped to broadcast; 1 where they are 0."""
    size = rms(value.float().view(len(value), -1))
    size = torch.where(size > 0, size, 1.0).to(torch.promote_types(value.dtype, torch.float32))
    return size.view(-1, *[1] * (value.ndim - 1))


def _check_effect(over: str, model: Denoiser) -> None:
    plain = model.guidance if model.scale is None else None
    if model.condition is None:
        raise InputError(f"over: {over!r} needs a model under a condition (model.with_condition(embedding))")
    if over == "condition" and plain == 0.0:
        raise InputError("over: a condition has no effect at guidance 0")
    if over == "null" and plain == 1.0:
        raise InputError("over: a null condition has no effect at guidance 1; give guidance=")


def _embeddings(over: str, given: Condition, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The entries of a condition that are embeddings, one row per sample, and the others."""
    accepted = "an embedding, a tensor of floats of shape (B, ...), or a mapping of them"
    if given is None:
        raise InputError(f"{over}: the model has none; give {accepted}")
    if is_words(given):
        raise InputError(f"{over}: got a prompt, {given!r}; give what the network takes of it, {accepted}")
    entries = dict(given) if isinstance(given, Mapping) else {_ONE: given}
    first, fixed = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in entries.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            if name == _ONE or not isinstance(value, Tensor):
                kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
                raise InputError(f"{over}: got the label {kind}, which cannot be moved; give {accepted}")
            fixed[name] = value
            continue
        value = value.detach().to(x.device)
        rows = value if value.ndim else value[None]
        if len(rows) not in (1, len(x)):
            raise InputError(f"{over}: got {len(rows)} rows for a batch of {len(x)} samples")
        first[name] = rows.expand(len(x), *rows.shape[1:]).clone()
    if not first:
        raise InputError(f"{over}: none of {', '.join(map(repr, entries))} is a tensor of floats; give {accepted}")
    return first, fixed
