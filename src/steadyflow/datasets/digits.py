"""The 1,797 real handwritten digits that ship with scikit-learn, 8x8, split once and for all.

Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingExtraError

TRAIN, HELD_OUT = 1500, 297


def digits(part: Literal["train", "held-out"]) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8), float32 in [-1, 1], and labels (n,) of the 1,500 training or 297 held-out digits.

    Raises `MissingExtraError` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data", "the digits data set") from error
    values, targets = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(TRAIN + HELD_OUT)
    chosen = order[:TRAIN] if part == "train" else order[TRAIN:]
    images = torch.from_numpy(values[chosen]).float().view(-1, 1, 8, 8) / 8.0 - 1.0
    return images, torch.from_numpy(targets[chosen]).long()
