"""Guards that keep optimised noise where the model was trained: on the Gaussian that its runs start from.

A latent is judged by its noise w = (z - alpha m) / sqrt(alpha^2 v + sigma^2), which is standard normal for the starts
of `sample`; m and v are the model's `moments`, or 0 and 0. In d dimensions |w| is within about 1/sqrt(2) of sqrt(d),
and an optimiser that ignores this finds latents that please the reward and lie where no sample starts.

`Norm` projects w to a sphere after every step (DOODL, Wallace et al. 2023, 2303.13703):

    w <- R w / |w|,    R = |w_0| or sqrt(d).

`Regular` adds what the noise's own regularity is worth (DNO, Tang et al. 2024, 2405.18881). w is cut into m = d/k
blocks w_i of k numbers. For Gaussian blocks, the mean and the covariance are concentrated,

    M1 = |1/m sum w_i|,                P(M1 > M) <= p1(M) = min(1, 2 exp(-m M^2 / (2 k))),
    M2 = |1/m sum w_i w_i^T - 1|_2,    P(M2 > M) <= p2(M) = min(1, 2 exp(-m t^2 / 2)),
                                       t = max(0, sqrt(1 + M) - 1 - sqrt(k/m)),

the first because E exp(|g|^2 / (2 k)) <= 2 for k standard normal numbers g (for k = 1, by the tail itself), the second
by the tails of the extreme singular values of a Gaussian matrix (Davidson & Szarek). As any order of the numbers must
look alike, both are taken for the noise as it is and for random permutations of it, and the mean of

    weight (log p1 + log p2)

over them is added to the reward. It is 0 or close to it for Gaussian draws, and falls with the square of how far noise
is beyond them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from .. import noise
from .._internal.given import number, whole
from .._internal.tensors import broadcast, norm
from ..errors import InputError, UnknownNameError

_PERMUTATIONS = 1 << 32
"""The place, in the stream of steering, of the numbers whose order gives permutations."""


class Guard(ABC):
    """What keeps noise plausible; its methods see standardised noise of shape (B, ...)."""

    @abstractmethod
    def project(self, w: Tensor, first: Tensor) -> Tensor:
        """The noise that takes the place of w after a step.

        Args:
            w: The noise.
            first: That of the start.
        """

    @abstractmethod
    def value(self, w: Tensor, seed: int, turn: int) -> Tensor | None:
        """What is added to the reward, shape (B,); None for nothing.

        Args:
            w: The noise.
            seed: Of what the guard draws.
            turn: The round, which addresses it.
        """

    def check(self, first: Tensor) -> None:  # noqa: B027  # most accept every start
        """Raise `InputError` for a start that the guard cannot keep."""


@dataclass(frozen=True)
class Free(Guard):
    """No guard."""

    def project(self, w: Tensor, first: Tensor) -> Tensor:
        return w

    def value(self, w: Tensor, seed: int, turn: int) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Norm(Guard):
    """Keeps the norm of the noise (DOODL, 2303.13703).

    Args:
        radius: "start", the norm of each sample's own start, which leaves the first round the plain sample; or
            "gaussian", sqrt(d).
    """

    radius: Literal["start", "gaussian"] = "start"

    def __post_init__(self):
        if self.radius not in ("start", "gaussian"):
            raise InputError(f"radius: got {self.radius!r}, expected 'start' or 'gaussian'")

    def project(self, w: Tensor, first: Tensor) -> Tensor:
        length = norm(w)
        goal = norm(first) if self.radius == "start" else torch.full_like(length, math.sqrt(w[0].numel()))
        scale = torch.where(length > 0, goal / length.clamp_min(torch.finfo(w.dtype).tiny), 1.0)
        return w * broadcast(scale, w)

    def value(self, w: Tensor, seed: int, turn: int) -> Tensor | None:
        return None

    def check(self, first: Tensor) -> None:
        if first[0].numel() == 1:
            raise InputError("guard: 'norm' holds samples of one number where they are; give guard='none'")
        still = (norm(first) == 0).nonzero().flatten()
        if len(still):
            raise InputError(
                f"guard: the start of sample {int(still[0])} has no noise to keep the norm of; give another start, "
                "or guard='regular'"
            )


@dataclass(frozen=True)
class Regular(Guard):
    """Adds what DNO's concentration inequalities say of the noise to the reward (2405.18881); see this module's page.

    Args:
        weight: What a nat of improbability costs, in units of the reward.
        block: k, the numbers in a block.
        permutations: How many random orders are looked at beside the own one.
    """

    weight: float = 1.0
    block: int = 2
    permutations: int = 8

    def __post_init__(self):
        weight = number("weight", self.weight)
        if not 0.0 <= weight < math.inf:
            raise InputError(f"weight: got {weight}, expected a number of at least 0")
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "block", whole("block", self.block, 1))
        object.__setattr__(self, "permutations", whole("permutations", self.permutations, 0))

    def project(self, w: Tensor, first: Tensor) -> Tensor:
        return w

    def value(self, w: Tensor, seed: int, turn: int) -> Tensor | None:
        flat = w.flatten(1)
        orders = [torch.arange(flat.shape[1], device=w.device), *self._orders(flat, seed, turn)]
        total = torch.stack([log_probability(flat[:, order], self.block) for order in orders])
        return self.weight * total.mean(0)

    def check(self, first: Tensor) -> None:
        if first[0].numel() < 2 * self.block:
            raise InputError(
                f"guard: blocks of {self.block} numbers say nothing of samples of {first[0].numel()}; give Norm()"
            )

    def _orders(self, flat: Tensor, seed: int, turn: int) -> list[Tensor]:
        """Random orders of the numbers of a sample, the same for all samples."""
        draw = (noise.normal(seed, noise.STEERING, (turn, k, _PERMUTATIONS), (0,), flat.shape[1:])
                for k in range(self.permutations))  # fmt: skip
        return [numbers[0].argsort().to(flat.device) for numbers in draw]


def log_probability(w: Tensor, block: int) -> Tensor:
    """The bound log p1 + log p2 on how probable noise is, by the mean and the covariance of its blocks.

    Args:
        w: Noise of samples, shape (B, d); a last part that fills no block is left out.
        block: k, the numbers in a block.

    Returns:
        Shape (B,), at most 0.
    """
    m = w.shape[1] // block
    blocks = w[:, : m * block].view(len(w), m, block)
    far = blocks.mean(1).square().sum(1)
    mean = (math.log(2.0) - m * far / (2.0 * block)).clamp_max(0.0)
    unit = torch.eye(block, dtype=w.dtype, device=w.device)
    covariance = blocks.transpose(1, 2) @ blocks / m - unit
    eigenvalues = cast(Any, torch.linalg.eigvalsh(covariance))
    most = eigenvalues.abs().amax(1)
    beyond = ((1.0 + most).sqrt() - 1.0 - math.sqrt(block / m)).clamp_min(0.0)
    return mean + (math.log(2.0) - m * beyond.square() / 2.0).clamp_max(0.0)


GUARDS: dict[str, type[Guard]] = {"none": Free, "norm": Norm, "regular": Regular}
"""The guards by name."""


def guard_of(given: object) -> Guard:
    """A guard by its name, or one that was made. Raises `InputError` for anything else."""
    if isinstance(given, Guard):
        return given
    if isinstance(given, str) and given in GUARDS:
        return GUARDS[given]()
    if isinstance(given, str):
        raise UnknownNameError("guard", given, GUARDS)
    raise InputError(f"guard: got {given!r}, expected {', '.join(map(repr, GUARDS))} or a Guard such as Regular()")


def distances(w: Tensor) -> dict[str, Tensor]:
    """How far noise is from standard normal noise, by name, each of shape (B,).

    "norm" is |w| / sqrt(d) - 1. "kl" is the Kullback-Leibler divergence of N(m, v) from N(0, 1) in nats per number,
    (v + m^2 - 1 - ln v) / 2, with m and v the mean and the variance of a sample's numbers; that of a Gaussian draw is
    about 1/d.

    Args:
        w: The noise, shape (B, ...).

    Returns:
        Float64, on the CPU.
    """
    flat = w.detach().flatten(1).to("cpu", torch.float64)
    mean = flat.mean(1)
    variance = (flat - mean[:, None]).square().mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    deviation = flat.norm(dim=1) / math.sqrt(flat.shape[1]) - 1.0
    return {"norm": deviation, "kl": (variance + mean.square() - 1.0 - variance.log()) / 2.0}
