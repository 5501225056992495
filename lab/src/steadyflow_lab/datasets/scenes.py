"""Real handwritten digits in coloured ink over real photographs: pictures of 64x64 whose every edit has a known truth.

The digits are MNIST's (`mnist`), the photographs those that ship inside scikit-image. A picture is a crop of a
photograph with at most one digit, of one of two sizes, at one of five places. The digits and the parts of the
photographs that models are trained on are not those that are held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .mnist import Part, mnist

SIDE = 64
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (0.85, 0.10, 0.10), "green": (0.10, 0.65, 0.15), "blue": (0.12, 0.20, 0.85), "yellow": (0.95, 0.85, 0.10),
    "white": (0.97, 0.97, 0.97), "black": (0.04, 0.04, 0.05),
}  # fmt: skip
SIZES = {"small": 22, "large": 30}
"""Sides of the digits' squares, pixels."""
PLACES = {
    "top left": (16, 16), "top right": (48, 16), "centre": (32, 32), "bottom left": (16, 48), "bottom right": (48, 48),
}  # fmt: skip
"""Middles of the squares, x then y; a digit may lie a pixel off."""
GROUNDS = {
    "bricks": ("brick", 0.4), "grass": ("grass", 0.4), "pebbles": ("gravel", 0.4), "coffee": ("coffee", 0.45),
    "fur": ("chelsea", 0.6), "stars": ("hubble_deep_field", 0.4), "cells": ("immunohistochemistry", 0.5),
    "metal": ("stereo_motorcycle", 0.4),
}  # fmt: skip
"""What a picture lies over: the photograph of scikit-image, and the scale at which it is cropped."""
_TRAINED = 0.62  # the share of a photograph's width that models are trained on


@dataclass(frozen=True)
class Scenes:
    """Pictures, with everything that they show."""

    images: Tensor
    """float32 in [-1, 1], shape (n, 3, 64, 64)."""
    grounds: Tensor
    """The same pictures without their digits, shape (n, 3, 64, 64)."""
    strokes: Tensor
    """How much of each pixel is ink, in [0, 1], shape (n, 1, 64, 64)."""
    digit: Tensor
    """0 to 9, or 10 where there is none; shape (n,), as for those that follow."""
    colour: Tensor
    """Of `COLOURS`; where there is no digit, what it would have been."""
    size: Tensor
    """Of `SIZES`."""
    place: Tensor
    """Of `PLACES`."""
    ground: Tensor
    """Of `GROUNDS`."""

    def caption(self, k: int) -> str:
        """The whole caption of a picture."""
        return caption(*(int(value[k]) for value in (self.digit, self.colour, self.size, self.place, self.ground)))

    def __len__(self) -> int:
        return len(self.images)


def caption(
    digit: int, colour: int | None = None, size: int | None = None, place: int | None = None, ground: int | None = None
) -> str:
    """A caption such as "a small red seven, top left, over pebbles"; what is None is left out.

    Args:
        digit: 0 to 9, or 10 for none: "nothing, over pebbles".
        colour: The number of the ink in `COLOURS`.
        size: That in `SIZES`.
        place: That in `PLACES`.
        ground: That in `GROUNDS`.
    """
    over = "" if ground is None else f", over {list(GROUNDS)[ground]}"
    if digit == len(DIGITS):
        return f"nothing{over}"
    words = [list(names)[k] for names, k in ((SIZES, size), (COLOURS, colour)) if k is not None]
    where = "" if place is None else f", {list(PLACES)[place]}"
    return f"a {' '.join([*words, DIGITS[digit]])}{where}{over}"


@cache
def _photographs() -> tuple[Tensor, ...]:
    """The photographs at their scales, each (3, H, W) in [0, 1]."""
    from skimage import data

    found = []
    for name, scale in GROUNDS.values():
        loaded = getattr(data, name)()
        picture = torch.from_numpy(loaded[0] if isinstance(loaded, tuple) else loaded).float() / 255.0  # one of a pair
        picture = picture[None].expand(3, -1, -1) if picture.ndim == 2 else picture.movedim(-1, 0)
        found.append(
            functional.interpolate(picture[None], scale_factor=scale, mode="bilinear", antialias=True)[0].clamp(0, 1)
        )
    return tuple(found)


def _crops(which: Tensor, held_out: bool, generator: torch.Generator) -> Tensor:
    photographs, crops = _photographs(), []
    places = torch.rand(len(which), 3, generator=generator).tolist()
    for k, (u, v, turned) in zip(which.tolist(), places, strict=True):
        height, width = photographs[k].shape[-2:]
        border = max(SIDE, min(width - SIDE, round(_TRAINED * width)))
        left, right = (border, width - SIDE) if held_out else (0, border - SIDE)
        x, y = left + round(u * (right - left)), round(v * (height - SIDE))
        crop = photographs[k][:, y : y + SIDE, x : x + SIDE]
        crops.append(crop.flip(-1) if turned < 0.5 else crop)
    return torch.stack(crops)


def draw(digits: Tensor, colours: Tensor, size: Tensor, centres: Tensor, grounds: Tensor) -> tuple[Tensor, Tensor]:
    """Write digits over pictures.

    Args:
        digits: (n, 1, 28, 28) in [0, 1]; zeros write nothing.
        colours: Of the inks, (n, 3) in [0, 1].
        size: Sides of the digits' squares in pixels, (n,).
        centres: Middles of the squares in pixels, x then y, (n, 2).
        grounds: (n, 3, 64, 64) in [0, 1].

    Returns:
        The pictures in [0, 1], and how much of each pixel is ink, (n, 1, 64, 64).
    """
    scale = SIDE / (size.float() * 28.0 / 20.0)  # MNIST's digits fill 20 of their 28 pixels
    place = torch.zeros(len(digits), 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = scale
    place[:, :, 2] = -scale[:, None] * (2.0 * centres.float() / SIDE - 1.0)
    where = functional.affine_grid(place, [len(digits), 1, SIDE, SIDE], align_corners=False)
    large = functional.interpolate(digits, scale_factor=2, mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    cover = functional.grid_sample(large, where, padding_mode="zeros", align_corners=False).clamp(0.0, 1.0)
    cover = cover.square() * (3.0 - 2.0 * cover)
    return grounds * (1.0 - cover) + colours[:, :, None, None] * cover, cover


def scenes(
    part: Part,
    n: int,
    generator: torch.Generator,
    *,
    empty: float = 0.1,
    middles: Sequence[tuple[int, int]] = tuple(PLACES.values()),
    jitter: int = 1,
) -> Scenes:
    """Draw pictures.

    Args:
        part: Whose digits: "train", "judge" or "test". The last two lie over the held-out parts of the photographs.
        n: How many.
        generator: The source of random numbers.
        empty: The share without a digit.
        middles: Where the middles of the places lie.
        jitter: How many pixels a digit may lie off.
    """
    known, labels = mnist(part)
    rows = torch.randint(len(known), (n,), generator=generator)
    ground = torch.randint(len(GROUNDS), (n,), generator=generator)
    size = torch.randint(len(SIZES), (n,), generator=generator)
    place = torch.randint(len(PLACES), (n,), generator=generator)
    none = torch.rand(n, generator=generator) < empty
    shift = torch.randint(-jitter, jitter + 1, (n, 2), generator=generator)
    grounds = _crops(ground, part != "train", generator)
    centres = torch.tensor(middles)[place] + shift
    sides = torch.tensor(list(SIZES.values()))[size]
    colour = _legible(grounds, sides, centres, torch.rand(n, len(COLOURS), generator=generator))
    inks = torch.tensor(list(COLOURS.values()))[colour]
    written = torch.where(none[:, None, None, None], 0.0, known[rows])
    images, strokes = draw(written, inks, sides, centres, grounds)
    digit = torch.where(none, len(DIGITS), labels[rows])
    return Scenes(2.0 * images - 1.0, 2.0 * grounds - 1.0, strokes, digit, colour, size, place, ground)


def _legible(grounds: Tensor, sides: Tensor, centres: Tensor, order: Tensor) -> Tensor:
    """The first ink in a random order that stands out from what lies behind the digit; else the one that does most."""
    axis = torch.arange(SIDE) + 0.5
    near = (axis[None, :] - centres[:, :1]).abs() <= sides[:, None] / 2
    behind = (near[:, None, :] & ((axis[None, :] - centres[:, 1:]).abs() <= sides[:, None] / 2)[:, :, None]).float()
    mean = (grounds * behind[:, None]).sum((2, 3)) / behind.sum((1, 2))[:, None]
    apart = torch.cdist(mean, torch.tensor(list(COLOURS.values())))
    return torch.where(apart > 0.45, 10.0 + order, apart).argmax(1)


EditKind = Literal["digit", "colour", "place", "remove"]
