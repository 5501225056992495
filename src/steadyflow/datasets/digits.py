"""The 1,797 real handwritten digits of 8x8 pixels that ship with scikit-learn, with a fixed split.

Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .._internal.imports import needing

TRAIN, HELD_OUT = 1500, 297


def digits(part: Literal["train", "held-out"]) -> tuple[Tensor, Tensor]:
    """Load the 1,500 training or the 297 held-out digits.

    Args:
        part: Which of the two.

    Returns:
        Images, float32 in [-1, 1], shape (n, 1, 8, 8), and labels 0 to 9, shape (n,).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with needing("scikit-learn", "sklearn", extra="data", purpose="the digits data set"):
        from sklearn.datasets import load_digits
    values, targets = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(TRAIN + HELD_OUT)
    chosen = order[:TRAIN] if part == "train" else order[TRAIN:]
    images = torch.from_numpy(values[chosen]).float().view(-1, 1, 8, 8) / 8.0 - 1.0
    return images, torch.from_numpy(targets[chosen]).long()
