"""Edits of real pictures, and what is seen of them: the bundled pipeline "ink" and a judge.

Held-out pictures of handwritten digits are inverted under their own caption and generated under another, every other
one with another digit, the rest in another ink. Kept is what lies outside the strokes (PSNR against the original);
changed is judged by a network that reads digit and ink off the picture. Evaluations count one way, the two branches of
guidance as one. Nothing depends on which pictures are done together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from steadyflow._internal import tensors
from steadyflow.datasets.ink import INKS, WORDS, Pictures, caption, ink
from steadyflow.diffusers import PipelineModel, load_pipeline
from steadyflow.errors import NonFiniteError
from steadyflow.metrics import psnr
from steadyflow.metrics.features import structure_distance, weights_hash
from steadyflow.models import pipeline_folder
from steadyflow.tasks.inversion import Inversion

from ..judge import Judge
from ..models import WEIGHTS
from ..watching import Largest

BLOWN = 3.0
"""A latent beyond this many times the largest number in the latents of `_MANY` sources counts as blown up."""
_MANY = 96


class InkExtractor:
    """The trained judge as an extractor.

    Its alignment is the probability of the digit and the ink that a caption names.
    """

    name = "judge of ink pictures"

    def __init__(self):
        self._judge = Judge(len(WORDS), len(INKS))
        weights = load_file(WEIGHTS / "judge.safetensors")
        self._judge.load_state_dict({name: value.float() for name, value in weights.items()})
        self._judge.eval().requires_grad_(False)

    @property
    def hash(self) -> str:
        """The hash of the weights."""
        return weights_hash([self._judge])

    def features(self, images: Tensor) -> Tensor:
        """Give the features that the judge reads, (B, 96)."""
        return self._judge.features(images)

    def patches(self, images: Tensor) -> Tensor:
        """Give the features of each part of the picture, (B, 16, 96)."""
        return self._judge.body[:8](images).flatten(2).transpose(1, 2)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give the log-probabilities of the digits (B, 10) and of the inks (B, 4)."""
        digit, colour = self._judge(images)
        return functional.log_softmax(digit, 1), functional.log_softmax(colour, 1)

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Give the probability that the judge gives to all that the prompt names, (B,)."""
        digit, colour = self.read(images)
        total = torch.zeros(len(images))
        for k, prompt in enumerate(prompts):
            words = prompt.split()
            total[k] += sum(digit[k, WORDS.index(w)] for w in words if w in WORDS)
            total[k] += sum(colour[k, list(INKS).index(w)] for w in words if w in INKS)
        return total.exp()


@dataclass(frozen=True)
class Task:
    """Pictures, their captions, and where they are to go."""

    pictures: Pictures
    sources: list[str]
    targets: list[str]
    images: Tensor
    """(n, 3, 32, 32) in [-1, 1]."""
    latents: Tensor
    """(n, 4, 8, 8)."""
    limit: float
    """The largest number of a latent that has not blown up."""


@dataclass(frozen=True)
class Seen:
    """What is seen of the edits of some pictures; one entry each."""

    kept: list[float]
    """PSNR outside the strokes, dB."""
    aligned: list[float]
    """The judge's probability of the target."""
    success: list[bool]
    """Whether the target is the likeliest reading."""
    structure: list[float]
    """Structure distance to the source."""
    blown: list[bool]
    """Whether the latent blew up."""


@cache
def setting() -> tuple[PipelineModel, InkExtractor]:
    """Load the model and the judge, once per process."""
    return bundled(), InkExtractor()


def bundled() -> PipelineModel:
    """Load the pipeline that the study edits with."""
    model = load_pipeline(pipeline_folder("ink"))
    assert isinstance(model, PipelineModel)
    return model


@cache
def task(n: int, seed: int = 0) -> Task:
    """Give n held-out pictures, the even ones another digit to become and the odd ones another ink."""
    pictures = ink("held-out", n, torch.Generator().manual_seed(seed))
    sources, inks, targets = [pictures.caption(k) for k in range(n)], list(INKS), []
    for k, (digit, colour) in enumerate(zip(pictures.digits.tolist(), pictures.inks.tolist(), strict=True)):
        changed = ((digit + 3) % 10, colour) if k % 2 == 0 else (digit, (colour + 1) % len(inks))
        targets.append(caption(changed[0], inks[changed[1]]))
    latents = setting()[0].encode(pictures.images)
    return Task(pictures, sources, targets, pictures.images, latents, _limit())


@cache
def _limit() -> float:
    """The largest number of a latent that has not blown up."""
    pictures = ink("held-out", _MANY, torch.Generator().manual_seed(0))
    return BLOWN * setting()[0].encode(pictures.images).abs().max().item()


def decode(inversion: Inversion, model: Any, guidance: float, like: Tensor) -> tuple[Tensor, float]:
    """Generate from an inversion: the latents, not finite where the run diverged, and the largest |z| on the way."""
    seen = Largest()
    try:
        return inversion.decode(model, guidance, callback=seen).x, seen.value
    except NonFiniteError:
        return torch.full_like(like, torch.inf), torch.inf


def look(job: Task, start: int, edited: Tensor) -> Seen:
    """Judge the edited latents of the pictures from `start` on; what blew up is decoded with its numbers cut."""
    model, judge = setting()
    stop, limit = start + len(edited), job.limit
    blown = (tensors.max_abs(edited) > limit) | ~edited.flatten(1).isfinite().all(1)
    edited = edited.nan_to_num(0.0, limit, -limit).clamp(-limit, limit)
    images, source = model.decode(edited).clamp(-1.0, 1.0), job.images[start:stop]
    paper, targets = (~job.pictures.strokes[start:stop]).float(), job.targets[start:stop]
    readings = zip(*(part.argmax(1).tolist() for part in judge.read(images)), strict=True)
    return Seen(
        psnr(images, source, span=2.0, region=paper).tolist(),
        judge.alignment(images, targets).tolist(),
        [reading == _wanted(prompt) for reading, prompt in zip(readings, targets, strict=True)],
        structure_distance(judge, images, source).tolist(),
        blown.tolist(),
    )


def _wanted(prompt: str) -> tuple[int, int]:
    words = prompt.split()
    digit = next(WORDS.index(w) for w in words if w in WORDS)
    return digit, next(list(INKS).index(w) for w in words if w in INKS)


def joined(parts: Sequence[Seen]) -> Seen:
    """Put what was seen of successive pictures together."""
    columns = ("kept", "aligned", "success", "structure", "blown")
    return Seen(*([value for part in parts for value in getattr(part, name)] for name in columns))
