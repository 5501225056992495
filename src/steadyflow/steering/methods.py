"""How the direction of a step is found: by the gradient through the sampler, without one, or at the sampler's end.

With the sampler F and the reward r, all of them give an estimate of the gradient of r(F(z)) in z:

    gradient      F'(z)^T r'(F(z)), exact, through every step (DOODL 2303.13703, D-Flow 2402.14017, DNO
                  2405.18881; ReNO 2406.04312 for a single step)
    zero-order    1 / (2 P s) sum_k (u_k+ - u_k-) e_k, over P antithetic pairs F(z +- s e_k) of addressed Gaussian
                  directions; u are the rewards, or their ranks (Salimans et al. 2017, 1703.03864)
    flowopt       r'(F(z)): the sampler's Jacobian is replaced by the identity (FlowOpt, 2510.22010). For the reward
                  -|x - y|^2 / 2 a plain step is z <- z - rate (F(z) - y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._internal.given import number, whole
from ..errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Gradient:
    """The exact gradient through the sampler."""


@dataclass(frozen=True)
class FlowOpt:
    """The reward's gradient at the end of the sampler, taken as that at its start (FlowOpt, 2510.22010)."""


@dataclass(frozen=True)
class ZeroOrder:
    """Antithetic Gaussian smoothing, for rewards and samplers without gradients.

    Args:
        pairs: P, the pairs of runs of a round.
        radius: s, how far from the state they start, in the units of what is optimised (standard deviations of the
            noise).
        shaping: What stands for the rewards of the 2 P runs of a sample: "rank", their ranks spaced over [-1/2, 1/2];
            "standard", the rewards less their mean, over their deviation; "none", themselves.
    """

    pairs: int = 8
    radius: float = 0.1
    shaping: Literal["rank", "standard", "none"] = "rank"

    def __post_init__(self):
        object.__setattr__(self, "pairs", whole("pairs", self.pairs, 1))
        radius = number("radius", self.radius)
        if not 0.0 < radius < math.inf:
            raise InputError(f"radius: got {radius}, expected a positive number")
        object.__setattr__(self, "radius", radius)
        if self.shaping not in ("rank", "standard", "none"):
            raise InputError(f"shaping: got {self.shaping!r}, expected 'rank', 'standard' or 'none'")

    def shaped(self, rewards: Tensor) -> Tensor:
        """What stands for the rewards of the runs of each sample.

        Args:
            rewards: Shape (2 P, B).
        """
        if self.shaping == "none":
            return rewards
        if self.shaping == "standard":
            centred = rewards - rewards.mean(0)
            spread = centred.square().mean(0).sqrt()
            return torch.where(spread > 0, centred / spread.clamp_min(torch.finfo(rewards.dtype).tiny), 0.0)
        below = (rewards[:, None] > rewards[None]).sum(1)
        equal = (rewards[:, None] == rewards[None]).sum(1)
        rank = below + (equal - 1) / 2.0  # ties share their mean
        return (rank / (len(rewards) - 1) - 0.5).to(rewards.dtype)


Method = Gradient | ZeroOrder | FlowOpt
METHODS: dict[str, type[Method]] = {"gradient": Gradient, "zero-order": ZeroOrder, "flowopt": FlowOpt}
"""The methods by name."""


def method_of(given: object) -> Method:
    """A method by its name, or one that was made. Raises `InputError` for anything else."""
    if isinstance(given, Gradient | ZeroOrder | FlowOpt):
        return given
    if isinstance(given, str) and given in METHODS:
        return METHODS[given]()
    if isinstance(given, str):
        raise UnknownNameError("method", given, METHODS)
    raise InputError(f"method: got {given!r}, expected {', '.join(map(repr, METHODS))} or ZeroOrder(...)")
