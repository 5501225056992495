"""Judge the digits model with a classifier and with nearest neighbours, both from real digits alone."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from steadyflow.datasets import digits
from steadyflow.denoisers.base import Denoiser
from steadyflow.tasks import sample


@cache
def classifier() -> Any:
    """Train a support vector machine on the 1,500 real training digits (about 98 % right on the held-out ones)."""
    from sklearn.svm import SVC

    images, labels = digits("train")
    return SVC(gamma="scale", C=10.0).fit(images.flatten(1).numpy(), labels.numpy())


def recognise(images: Tensor) -> Tensor:
    """Say which class the classifier sees in each image, (n, 1, 8, 8) -> (n,)."""
    return torch.from_numpy(classifier().predict(images.detach().float().flatten(1).cpu().numpy()))


def nearest(images: Tensor, references: Tensor) -> Tensor:
    """Give the Euclidean distance of each image to the nearest reference, (n,)."""
    return torch.cdist(images.flatten(1), references.flatten(1)).min(1).values


def quality(model: Denoiser, n: int = 1000, *, steps: int = 50, seed: int = 1) -> dict[str, float]:
    """Compute the figures by which the digits model is judged.

    classifier: its accuracy on held-out real digits. recognised: share of n conditional samples (guidance 1,
    DDIM) seen as their class. novelty: median distance from samples to the training set over that from
    held-out digits; well below 1 means that samples are copies.
    """
    train, _ = digits("train")
    held_out, truth = digits("held-out")
    wanted = torch.arange(n) % 10
    drawn = sample(model.with_condition(wanted), n=n, solver="ddim", steps=steps, seed=seed).x
    return {
        "classifier": float((recognise(held_out) == truth).float().mean()),
        "recognised": float((recognise(drawn) == wanted).float().mean()),
        "novelty": float(nearest(drawn, train).median() / nearest(held_out, train).median()),
    }
