"""The real handwritten digits, written in ink on unevenly lit paper: small colour pictures with captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .digits import digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {"black": (0.10, 0.10, 0.12), "red": (0.80, 0.12, 0.12), "green": (0.08, 0.50, 0.15), "blue": (0.12, 0.20, 0.75)}
SIZE = 32


@dataclass(frozen=True)
class Pictures:
    """Pictures, with what they show."""

    images: Tensor
    """The pictures, float32 in [-1, 1], shape (n, 3, 32, 32)."""
    digits: Tensor
    """The digit of each picture, 0 to 9, shape (n,)."""
    inks: Tensor
    """The index in `INKS` of each picture's ink, shape (n,)."""
    strokes: Tensor
    """Where there is ink, and two pixels around, bool, shape (n, 1, 32, 32)."""

    def caption(self, k: int, *, ink: bool = True) -> str:
        """The caption of a picture, such as "a handwritten seven in red ink".

        Args:
            k: The number of the picture.
            ink: Whether to name the ink; else "a handwritten seven".
        """
        return caption(int(self.digits[k]), list(INKS)[int(self.inks[k])] if ink else None)


def caption(digit: int, ink: str | None = None) -> str:
    """The caption for a digit.

    Args:
        digit: 0 to 9.
        ink: The name of an ink, to be named in the caption.
    """
    return f"a handwritten {WORDS[digit]}" + (f" in {ink} ink" if ink else "")


def ink(part: Literal["train", "held-out"], n: int, generator: torch.Generator) -> Pictures:
    """Draw pictures of random digits in random inks, sizes and places, on paper of two random tints.

    Args:
        part: Which of the digits to draw from.
        n: The number of pictures.
        generator: The source of random numbers.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    known, labels = digits(part)
    rows = torch.randint(len(known), (n,), generator=generator)
    uniform = torch.rand(n, 16, generator=generator)
    scale = 0.62 + 0.22 * uniform[:, 0]  # the side of the digit's square, in sides of the picture
    shift = (1.0 - scale[:, None]) * (2.0 * uniform[:, 1:3] - 1.0)
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = 1.0 / scale
    place[:, :, 2] = -shift / scale[:, None]
    grid = functional.affine_grid(place, [n, 1, SIZE, SIZE], align_corners=False)
    large = functional.interpolate(known[rows], scale_factor=4, mode="bicubic", align_corners=False)
    strength = functional.grid_sample((large + 1.0) / 2.0, grid, padding_mode="zeros", align_corners=False).clamp(
        0.0, 1.0
    )
    cover = torch.sigmoid(9.0 * (strength - 0.45))
    cover = (cover - cover.new_tensor(-9.0 * 0.45).sigmoid()).clamp_min(0.0)
    chosen = torch.randint(len(INKS), (n,), generator=generator)
    colours = torch.tensor(list(INKS.values()))[chosen] + 0.08 * (uniform[:, 3:6] - 0.5)
    first, second = 0.72 + 0.28 * uniform[:, 6:9], 0.72 + 0.28 * uniform[:, 9:12]
    angle = 2.0 * torch.pi * uniform[:, 12]
    axis = torch.linspace(-1.0, 1.0, SIZE)
    along = angle.cos()[:, None, None] * axis[None, None, :] + angle.sin()[:, None, None] * axis[None, :, None]
    light = (0.5 + 0.35 * along)[:, None]
    paper = first[:, :, None, None] * light + second[:, :, None, None] * (1.0 - light)
    images = paper * (1.0 - cover) + colours[:, :, None, None] * cover
    strokes = functional.max_pool2d(cover, 5, stride=1, padding=2) > 0.25
    return Pictures((2.0 * images - 1.0).clamp(-1.0, 1.0), labels[rows], chosen, strokes)
