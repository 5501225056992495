"""The network that reads a frame of a moving digit: what edits of videos are judged by."""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from .datasets.moving import COLOURS, DIGITS


class Seen(NamedTuple):
    """Logits of what a frame shows."""

    digit: Tensor
    """(B, 11); the last is that there is none."""
    colour: Tensor
    """(B, 4)."""


class MovingJudge(nn.Module):
    """A network from frames (B, 3, 32, 32) in [-1, 1] to what they show."""

    def __init__(self):
        super().__init__()
        widths = [3, 32, 64, 96]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(96, 128, 4), nn.SiLU(), nn.Flatten())
        self.heads = nn.ModuleList([nn.Linear(128, len(DIGITS) + 1), nn.Linear(128, len(COLOURS))])

    def forward(self, frames: Tensor) -> Seen:
        seen = self.body(frames)
        return Seen(*(head(seen) for head in self.heads))
