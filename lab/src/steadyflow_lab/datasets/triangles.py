"""Images of three triangles each, drawn: the counting data set of 2605.06831, F.2, as far as that describes it."""

import math

import torch
from torch import Tensor

from steadyflow.errors import InputError

SIDE = 64
RADII = (7.0, 10.0)
"""Circumradii of the triangles, pixels."""
_GAP = 2.0  # pixels between the circles around two triangles


def triangles(n: int = 10_000, *, each: int = 3, seed: int = 0) -> Tensor:
    """Draw n images (n, 1, 64, 64) in [-1, 1] of `each` upright white triangles on black.

    The triangles are equilateral, of random place and size, and none touches another or the edge; their sides are
    antialiased.
    """
    if n < 1 or not 0 <= each <= 4:
        raise InputError(f"triangles: expected n >= 1 and 0 to 4 triangles in each image, got {n} and {each}")
    generator = torch.Generator().manual_seed(seed)
    low, high = RADII
    centres = torch.empty(n, each, 2)
    radii = low + (high - low) * torch.rand(n, each, generator=generator)
    bad = torch.arange(n)
    while len(bad):
        room = SIDE - 2.0 * (radii[bad] + 1.0)
        centres[bad] = (
            radii[bad][..., None] + 1.0 + room[..., None] * torch.rand(len(bad), each, 2, generator=generator)
        )
        between = torch.cdist(centres[bad], centres[bad]) - radii[bad][:, :, None] - radii[bad][:, None, :]
        between.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        bad = bad[(between < _GAP).flatten(1).any(1)]
    return draw(centres, radii)


def draw(centres: Tensor, radii: Tensor, brightness: Tensor | float = 1.0) -> Tensor:
    """Draw triangles at the centres (n, k, 2), x then y, of circumradii (n, k) in pixels: (n, 1, 64, 64) in [-1, 1].

    brightness: (n, k), of each triangle, 0 black to 1 white. Where triangles overlap, the brighter is seen.
    """
    brightness = torch.as_tensor(brightness, dtype=centres.dtype).expand(radii.shape)
    axis = torch.arange(SIDE, dtype=centres.dtype) + 0.5
    image = torch.zeros(len(centres), SIDE, SIDE, dtype=centres.dtype)
    for k in range(radii.shape[1]):
        x = axis[None, None, :] - centres[:, k, 0, None, None]
        y = axis[None, :, None] - centres[:, k, 1, None, None]
        outside = torch.stack(
            [math.cos(a) * x + math.sin(a) * y for a in (math.pi / 2, -math.pi / 6, 7 * math.pi / 6)]
        ).amax(0)  # of the nearest edge's line, less the inradius, half the circumradius
        cover = (radii[:, k, None, None] / 2.0 - outside + 0.5).clamp(0.0, 1.0)
        image = torch.maximum(image, cover * brightness[:, k, None, None])
    return 2.0 * image[:, None] - 1.0
