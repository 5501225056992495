"""Real face patches and patches of photographs, 16x16 and grey, from what ships with scikit-image; split once for all.

The faces are those of scikit-image's `lfw_subset` (100 faces of 25x25 pixels, cropped from Labeled Faces in the Wild:
Huang et al. 2007): 50 for training, 50 held out. The photographs give the training set its breadth.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SIZE = 16
PHOTOGRAPH, FACE = 0, 1
_PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "moon", "rocket")


def faces(part: Literal["train", "held-out"]) -> tuple[Tensor, Tensor]:
    """Give patches (n, 1, 16, 16), float32 in [-1, 1], and labels (n,): 0 for a photograph, 1 for a face.

    "train": 50 faces in 35 framings and their mirror images, and twice as many patches of nine photographs. "held-out":
    the other 50 faces, whole and closer: 100 patches.
    """
    from skimage import color, data

    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    people = torch.from_numpy(data.lfw_subset()[:100]).float()[order][:, None]  # the first hundred are the faces
    if part == "held-out":
        views = torch.cat([_framed(people[50:], 25, 0, 0), _framed(people[50:], 21, 2, 2)])
        return views * 2.0 - 1.0, torch.full((len(views),), FACE)
    views = [
        _framed(people[:50], side, top, left)
        for side in (21, 23, 25)
        for top in range(26 - side)
        for left in range(26 - side)
    ]
    portraits = torch.cat(views)
    portraits = torch.cat([portraits, portraits.flip(-1)])
    patches = []
    for name in _PHOTOGRAPHS:
        picture = getattr(data, name)()
        grey = torch.from_numpy(color.rgb2gray(picture) if picture.ndim == 3 else picture / 255.0).float()[None, None]
        for factor in (0.5, 0.25):
            small = interpolate(grey, scale_factor=factor, mode="bilinear", antialias=True)
            patches.append(small.unfold(2, SIZE, 8).unfold(3, SIZE, 8).reshape(-1, 1, SIZE, SIZE))
    photographs = torch.cat(patches)
    chosen = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(0))[: 2 * len(portraits)]
    images = torch.cat([photographs[chosen], portraits]) * 2.0 - 1.0
    labels = torch.cat([torch.full((len(chosen),), PHOTOGRAPH), torch.full((len(portraits),), FACE)])
    return images, labels


def _framed(people: Tensor, side: int, top: int, left: int) -> Tensor:
    """Cut a square window out of the faces and scale it, (n, 1, 25, 25) -> (n, 1, 16, 16)."""
    window = people[:, :, top : top + side, left : left + side]
    return interpolate(window, size=(SIZE, SIZE), mode="bilinear", antialias=True)
