"""The network that reads a scene: what edits over photographs are judged by."""

import itertools
from typing import NamedTuple

from torch import Tensor, nn

from .datasets.scenes import COLOURS, DIGITS, GROUNDS, PLACES, SIZES


class Seen(NamedTuple):
    """Logits of what a picture shows."""

    digit: Tensor
    """(B, 11); the last is that there is none."""
    colour: Tensor
    size: Tensor
    place: Tensor
    ground: Tensor


class SceneJudge(nn.Module):
    """A network from pictures (B, 3, 64, 64) in [-1, 1] to what they show."""

    def __init__(self):
        super().__init__()
        widths = [3, 24, 48, 96, 96]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(96, 192, 4), nn.SiLU(), nn.Flatten())
        outs = (len(DIGITS) + 1, len(COLOURS), len(SIZES), len(PLACES), len(GROUNDS))
        self.heads = nn.ModuleList([nn.Linear(192, out) for out in outs])

    def features(self, images: Tensor) -> Tensor:
        """What the answers are read from, (B, 192)."""
        return self.body(images)

    def forward(self, images: Tensor) -> Seen:
        seen = self.features(images)
        return Seen(*(head(seen) for head in self.heads))
