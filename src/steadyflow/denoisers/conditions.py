"""Conditions and scales of guidance: what is accepted, one row per sample, and rows of some samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from .._internal.given import number, text
from ..errors import InputError

Condition = int | str | Tensor | Mapping[str, Tensor] | Sequence[int] | Sequence[str] | None
"""A label for the whole batch, one label or embedding per sample (leading dimension B), or a dict of them; for models
over pipelines, a prompt or a list of one prompt per sample."""

PerSample = Tensor | Sequence[int] | Sequence[str]
"""A condition with one entry per sample."""

Rows: TypeAlias = "Tensor | Mapping[str, Rows]"
"""A condition with one row per sample, as a network takes it."""

STRONGEST = 1e6
"""A guidance scale beyond this is a mistake, and overflows."""


def check_guidance(guidance: object) -> float:
    """The scale of guidance as a number. Raises `InputError` unless it is one that is not too large."""
    accepted = f"a number within +-{STRONGEST:g}"
    found = number("guidance", guidance, accepted)
    if not abs(found) <= STRONGEST:
        raise InputError(f"guidance: got {found}, expected {accepted}")
    return found


def check_scale(guidance: Tensor) -> Tensor:
    """The scale of guidance as a tensor. Raises `InputError` unless it holds one number, or one per sample."""
    if guidance.ndim > 1 or not guidance.is_floating_point() or guidance.numel() == 0:
        got = f"{guidance.dtype} of shape {tuple(guidance.shape)}"
        raise InputError(f"guidance: got {got}, expected a number, or floats of shape () or (B,)")
    if not bool(guidance.detach().abs().le(STRONGEST).all()):
        raise InputError(f"guidance: expected numbers within +-{STRONGEST:g}")
    return guidance


def is_words(given: Condition) -> bool:
    """Return whether a condition is a prompt or a list of them; raises `InputError` for one that is no whole text."""
    found = isinstance(given, str) or (isinstance(given, Sequence) and bool(given) and isinstance(given[0], str))
    for prompt in ([given] if isinstance(given, str) else cast("Sequence[Any]", given)) if found else ():
        if isinstance(prompt, str):
            text("prompt", prompt)
    return found


def expand(condition: Condition, x: Tensor) -> Rows:
    """Return the condition with one row per sample of x."""
    if isinstance(condition, Mapping):
        return {key: expand(value, x) for key, value in condition.items()}
    value = torch.as_tensor(condition, device=x.device)
    if value.ndim == 0:
        return value.expand(len(x))
    if len(value) == len(x):
        return value
    if len(value) == 1:
        return value.expand(len(x), *value.shape[1:])
    raise InputError(f"condition: got {len(value)} rows for a batch of {len(x)} samples")


def join(null: Rows, given: Rows) -> Rows:
    """Return the rows of the null condition followed by those of the condition."""
    if isinstance(given, Mapping):
        if not isinstance(null, Mapping) or null.keys() != given.keys():
            raise InputError(f"guidance: the null condition does not have the condition's entries {sorted(given)}")
        return {key: join(null[key], value) for key, value in given.items()}
    if not isinstance(null, Tensor):
        raise InputError(f"guidance: the null condition has the entries {sorted(null)}, the condition is one tensor")
    if null.shape[1:] != given.shape[1:]:
        raise InputError(
            f"guidance: per sample, the condition has shape {tuple(given.shape[1:])}, but the null condition "
            f"{tuple(null.shape[1:])}"
        )
    return torch.cat([null.to(given.dtype), given])


def select(condition: Condition, choose: Callable[[PerSample], PerSample]) -> Condition:
    """Return the condition of some samples of a batch: `choose` applies to entries per sample, shared ones remain."""
    if isinstance(condition, Mapping):
        return {key: cast(Tensor, select(value, choose)) for key, value in condition.items()}
    if isinstance(condition, Tensor):
        return choose(condition) if condition.ndim > 0 and len(condition) > 1 else condition
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        return choose(condition) if len(condition) > 1 else condition
    return condition


def rows_of(condition: Condition) -> set[int]:
    """Return the numbers of rows that a condition has, of what is not shared by all samples."""
    if isinstance(condition, Mapping):
        return {rows for value in condition.values() for rows in rows_of(value)}
    if isinstance(condition, Tensor):
        return {len(condition)} if condition.ndim > 0 else set()
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        return {len(condition)}
    return set()
