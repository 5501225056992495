"""Asking a reward, and refusing what is none: one finite number per sample, that depends on the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from .._internal.tensors import integers
from ..errors import InputError, NonFiniteError

Reward = Callable[[Tensor], Tensor]
"""From samples as `sample` returns them, shape (B, ...), to one number per sample, shape (B,); higher is better."""


def ask(reward: Reward, x: Tensor, turn: int, *, gradient: bool, kept: str) -> Tensor:
    """The rewards of samples, shape (B,), float32 or float64.

    Args:
        reward: The reward, which is given a copy that it may write to.
        x: The samples.
        turn: The round, for messages.
        gradient: Whether they are to be differentiated.
        kept: Where the rounds before are, for messages.

    Raises:
        InputError: What is returned is not one number per sample, or does not depend on the samples.
        NonFiniteError: A reward is NaN or infinite.
    """
    found = cast(object, reward(x.clone()))
    if not isinstance(found, Tensor):
        raise InputError(f"reward: returned {type(found).__name__}, expected a tensor of shape ({len(x)},)")
    if found.shape != x.shape[:1]:
        raise InputError(
            f"reward: returned shape {tuple(found.shape)} for {len(x)} samples, expected ({len(x)},): one number per "
            "sample, not a mean over them"
        )
    if found.is_complex():
        raise InputError(f"reward: returned {found.dtype}, expected real numbers")
    if gradient and not found.requires_grad:
        raise InputError(
            "reward: does not depend on the samples by a gradient (its result has no grad_fn: is there a detach(), a "
            "no_grad() or a round() in it?); method='zero-order' needs none"
        )
    _check_finite(found, "it", turn, kept)
    return found.to(x.device, torch.promote_types(found.dtype, torch.float32))


def reward_gradient(rewards: Tensor, x: Tensor, turn: int, *, kept: str) -> Tensor:
    """The gradient of each sample's reward, of x's shape.

    Args:
        rewards: Shape (B,).
        x: The samples of which they are.
        turn: The round, for messages; in round 0, a reward that is flat at all samples is an error.
        kept: Where the rounds before are, for messages.

    Raises:
        InputError: The reward does not depend on the samples.
        NonFiniteError: The gradient is NaN or infinite.
    """
    found = torch.autograd.grad(cast(Any, rewards.sum()), x, allow_unused=True)[0]
    if found is None or (turn == 0 and not bool(found.any())):
        raise InputError(
            "reward: its gradient is 0 at every sample, so that there is no direction to go; is there a detach() in "
            "it, or is it flat there? method='zero-order' needs no gradient"
        )
    _check_finite(found, "its gradient", turn, kept)
    return found.detach()


def run_gradient(x: Tensor, slope: Tensor, leaves: Mapping[str, Tensor], turn: int, *, kept: str) -> dict[str, Tensor]:
    """The gradient of the rewards in what went into a run, by name.

    Args:
        x: The samples of the run.
        slope: The gradient of the rewards in them.
        leaves: What went in, each (B, ...).
        turn: The round, for messages; in round 0, a gradient that is 0 for all samples is an error.
        kept: Where the rounds before are, for messages.

    Raises:
        InputError: The samples do not depend on what went in.
        NonFiniteError: The gradient is NaN or infinite.
    """
    parts = torch.autograd.grad(x, list(leaves.values()), slope, allow_unused=True) if x.requires_grad else ()
    if all(part is None for part in parts) or (turn == 0 and not any(bool(p.any()) for p in parts if p is not None)):
        raise InputError(
            "method: no gradient comes through the sampler; does a correction, the solver or the network detach the "
            "state? method='zero-order' needs no gradient"
        )
    found = {
        name: torch.zeros_like(leaf) if part is None else part.detach()
        for (name, leaf), part in zip(leaves.items(), parts, strict=True)
    }
    for part in found.values():
        _check_finite(part, "its gradient through the sampler", turn, kept)
    return found


def _check_finite(found: Tensor, what: str, turn: int, kept: str) -> None:
    broken = found.detach().reshape(len(found), -1).isfinite().all(1).logical_not().nonzero().flatten()
    if len(broken):
        rows = ", ".join(map(str, integers(broken)[:5]))
        raise NonFiniteError(f"reward: {what} is NaN or infinite at round {turn} for sample(s) {rows}; {kept}")
