"""Problems: exact mixtures in 2 and 64 dimensions, the digits model, and deliberately wrong scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from steadyflow.datasets import digits
from steadyflow.denoisers import Denoiser, GaussianMixture
from steadyflow.models import load
from steadyflow.schedules import Schedule, VPCosine


@dataclass(frozen=True)
class Problem:
    """A model, data to compare with, and whether its score is right."""

    name: str
    kind: str
    """"exact", "learned" or "wrong"."""
    model: Denoiser
    data: Tensor

    @property
    def mean_square(self) -> float:
        """The mean square of the data's numbers."""
        return float(self.data.square().mean())


def mixture(dim: int, seed: int) -> GaussianMixture:
    """Make twelve modes of unequal weight, clustered in the plane, or within eight of 64 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.zeros(12, dim)
    means[:, : min(dim, 8)] = 1.2 * torch.randn(12, min(dim, 8), generator=generator)
    weights = 0.2 + torch.rand(12, generator=generator)
    return GaussianMixture(means, 0.12 if dim == 2 else 0.3, weights)


def wrong(model: Denoiser, how: str) -> Denoiser:
    """Make a model whose clean prediction is shifted, or rounded."""

    def net(x: Tensor, time: Tensor, given: Any = None) -> Tensor:
        clean = (model if given is None else model.with_condition(given))(x, float(time[0])).x0
        return clean + 0.08 if how == "biased" else (clean * 8.0).round() / 8.0 + (clean - clean.detach()) * 1.0

    return Denoiser(net, model.schedule, prediction="sample", shape=model.shape, name=f"{model.name}, {how}")


@cache
def problems(part: str, n: int) -> tuple[Problem, ...]:
    """Make the problems for "tuning" or "test": other mixtures, and another half of the digits' labels."""
    first = 0 if part == "tuning" else 10
    schedule: Schedule = VPCosine()
    found = []
    for dim in (2, 64):
        data = mixture(dim, first + dim)
        model = data.denoiser(schedule)
        drawn = data.sample(4 * n, seed=999)
        smooth = GaussianMixture(data.means, data.std * 1.5, data.weights).denoiser(schedule)
        found += [
            Problem(f"{dim}-D", "exact", model, drawn),
            Problem(f"{dim}-D smoothed", "wrong", smooth, drawn),
            Problem(f"{dim}-D biased", "wrong", wrong(model, "biased"), drawn),
            Problem(f"{dim}-D quantised", "wrong", wrong(model, "quantised"), drawn),
        ]
    images, labels = digits("train")
    chosen = labels % 2 == (0 if part == "tuning" else 1)
    learned = load("digits").with_condition(labels[chosen][torch.arange(n) % int(chosen.sum())])
    return (*found, Problem("digits", "learned", learned, images[chosen]))
