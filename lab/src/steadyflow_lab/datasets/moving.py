"""Real handwritten digits that move in coloured ink over dim tints: videos of 32x32 whose every edit has a known truth.

The digits are MNIST's (`mnist`), which is divided once for all: those that models are trained on are not those that
judges are, nor those that are edited. A digit moves in a straight line, at a speed of its own, and stays in the frame.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .mnist import Part, mnist

SIDE = 32
FRAMES = 9
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (0.92, 0.16, 0.14),
    "green": (0.15, 0.80, 0.25),
    "blue": (0.25, 0.40, 0.98),
    "yellow": (0.95, 0.88, 0.20),
}
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps of the digit's centre, x then y; y grows downwards."""
TINTS = {
    "grey": (0.24, 0.24, 0.25),
    "brown": (0.30, 0.20, 0.12),
    "teal": (0.08, 0.26, 0.27),
    "violet": (0.24, 0.13, 0.32),
}
"""What lies behind: a dim tint, which fades to some of itself across the frame, and stands still."""
DIGIT = 16
"""The side of a digit's square, pixels."""
SPEEDS = (0.9, 1.5)
"""Pixels per frame, drawn evenly between these."""
_FADED = 0.35  # what is left of a tint at its darker end
_MARGIN = 10  # from a digit's centre to the nearest border, at least


@dataclass(frozen=True)
class Moving:
    """Videos, with everything that they show."""

    videos: Tensor
    """float32 in [-1, 1], shape (n, 3, 9, 32, 32)."""
    grounds: Tensor
    """What lies behind, which stands still, in [-1, 1], shape (n, 3, 32, 32)."""
    strokes: Tensor
    """How much of each pixel is ink, in [0, 1], shape (n, 1, 9, 32, 32)."""
    centres: Tensor
    """Middles of the digits' squares in pixels, x then y, shape (n, 9, 2)."""
    writing: Tensor
    """The digits as they were written, in [0, 1], shape (n, 1, 28, 28)."""
    digit: Tensor
    """0 to 9, or 10 where there is none; shape (n,), as for those that follow."""
    colour: Tensor
    """Of `COLOURS`."""
    direction: Tensor
    """Of `DIRECTIONS`."""
    background: Tensor
    """Of `TINTS`."""

    def caption(self, k: int) -> str:
        """The whole caption of a video."""
        return caption(int(self.digit[k]), int(self.colour[k]), int(self.direction[k]))

    def __len__(self) -> int:
        return len(self.videos)


def caption(digit: int, colour: int | None = None, direction: int | None = None) -> str:
    """A caption such as "a red seven moving right"; what is None is left out.

    Args:
        digit: 0 to 9, or 10 for none: "nothing".
        colour: The number of the ink in `COLOURS`.
        direction: That in `DIRECTIONS`.
    """
    if digit == len(DIGITS):
        return "nothing"
    ink = "" if colour is None else f"{list(COLOURS)[colour]} "
    way = "" if direction is None else f" moving {list(DIRECTIONS)[direction]}"
    return f"a {ink}{DIGITS[digit]}{way}"


def draw(digits: Tensor, inks: Tensor, centres: Tensor, grounds: Tensor) -> tuple[Tensor, Tensor]:
    """Write moving digits over pictures that stand still.

    Args:
        digits: (n, 1, 28, 28) in [0, 1]; zeros write nothing.
        inks: Their colours, (n, 3) in [0, 1].
        centres: Middles of their squares in each frame, in pixels, x then y, (n, F, 2).
        grounds: (n, 3, 32, 32) in [0, 1].

    Returns:
        The videos in [0, 1], (n, 3, F, 32, 32), and how much of each pixel is ink, (n, 1, F, 32, 32).
    """
    n, frames = centres.shape[:2]
    scale = SIDE / (DIGIT * 28.0 / 20.0)  # MNIST's digits fill 20 of their 28 pixels
    place = torch.zeros(n * frames, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = scale
    place[:, :, 2] = -scale * (2.0 * centres.reshape(-1, 2).float() / SIDE - 1.0)
    where = functional.affine_grid(place, [n * frames, 1, SIDE, SIDE], align_corners=False)
    large = functional.interpolate(digits, scale_factor=2, mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    large = large[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    cover = functional.grid_sample(large, where, padding_mode="zeros", align_corners=False).clamp(0.0, 1.0)
    cover = cover.view(n, frames, 1, SIDE, SIDE).transpose(1, 2)
    cover = cover.square() * (3.0 - 2.0 * cover)
    return grounds[:, :, None] * (1.0 - cover) + inks[:, :, None, None, None] * cover, cover


def moving(part: Part, n: int, generator: torch.Generator, *, empty: float = 0.0) -> Moving:
    """Draw videos.

    Args:
        part: Whose digits: "train", "judge" or "test".
        n: How many.
        generator: The source of random numbers.
        empty: The share without a digit.
    """
    known, labels = mnist(part)
    rows = torch.randint(len(known), (n,), generator=generator)
    colour = torch.randint(len(COLOURS), (n,), generator=generator)
    direction = torch.randint(len(DIRECTIONS), (n,), generator=generator)
    background = torch.randint(len(TINTS), (n,), generator=generator)
    none = torch.rand(n, generator=generator) < empty
    grounds = _grounds(torch.tensor(list(TINTS.values()))[background], generator)
    centres = _centres(torch.tensor(list(DIRECTIONS.values()))[direction].float(), generator)
    inks = torch.tensor(list(COLOURS.values()))[colour]
    written = torch.where(none[:, None, None, None], 0.0, known[rows])
    videos, strokes = draw(written, inks, centres, grounds)
    digit = torch.where(none, len(DIGITS), labels[rows])
    return Moving(
        2.0 * videos - 1.0, 2.0 * grounds - 1.0, strokes, centres, written, digit, colour, direction, background
    )


def _grounds(tints: Tensor, generator: torch.Generator) -> Tensor:
    """Tints that fade in directions of their own, (n, 3, 32, 32) in [0, 1]."""
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2.0 - 1.0
    turned = 2.0 * torch.pi * torch.rand(len(tints), 1, 1, generator=generator)
    along = (turned.cos() * axis[None, None, :] + turned.sin() * axis[None, :, None]) / 2.0**0.5  # in [-1, 1]
    light = _FADED + (1.0 - _FADED) * (1.0 + along) / 2.0
    return tints[:, :, None, None] * light[:, None]


def _centres(steps: Tensor, generator: torch.Generator) -> Tensor:
    """Straight paths in the frame along unit steps (n, 2), shape (n, 9, 2)."""
    slowest, fastest = SPEEDS
    speed = slowest + (fastest - slowest) * torch.rand(len(steps), 1, generator=generator)
    run = steps * speed * (FRAMES - 1)
    low, high = _MARGIN + (-run).clamp(min=0.0), SIDE - _MARGIN - run.clamp(min=0.0)
    first = low + (high - low) * torch.rand(len(steps), 2, generator=generator)
    return first[:, None] + run[:, None] * torch.linspace(0.0, 1.0, FRAMES)[None, :, None]
