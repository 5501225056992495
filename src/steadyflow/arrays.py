"""Batches of samples from and to the user's files: PNG and other pictures, .npy, .safetensors.

Pictures are mapped from [0, 255] to [-1, 1] and back. Nothing is unpickled.
"""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CorruptFileError, InputError, MissingExtraError

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_MAX_PIXELS = 64_000_000


def read(path: str | Path, shape: tuple[int, ...], *, resize: bool = False) -> Tensor:
    """A batch (B, *shape), float32 or float64, from a file.

    A picture gives one sample; its channels follow `shape` (1 is grey, 3 colour), and its size must be the
    model's unless `resize`. Arrays may leave the batch out. A .safetensors file must hold one tensor, or one
    named "x".

    Raises `FileNotFoundError`, `CorruptFileError` for a file that is not what its name says, `InputError` for
    another shape, `MissingExtraError` for pictures without Pillow.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    kind = path.suffix.lower()
    if kind in _PICTURES:
        return _read_picture(path, shape, resize)
    if kind == ".npy":
        return _fit(path, torch.from_numpy(_read_npy(path)), shape)
    if kind == ".safetensors":
        return _fit(path, _read_safetensors(path), shape)
    raise InputError(f"{path}: unknown kind {kind!r}, expected .npy, .safetensors or {', '.join(_PICTURES)}")


def read_folder(folder: str | Path, shape: tuple[int, ...], limit: int | None = None) -> Tensor:
    """The pictures of a folder in the order of their names, scaled to the shape (C, H, W): a batch (B, C, H, W).

    Raises `FileNotFoundError` for a folder that is none, `InputError` for one without pictures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)[:limit]
    if not paths:
        raise InputError(f"{folder}: holds no pictures ({', '.join(_PICTURES)})")
    return torch.cat([_read_picture(path, shape, resize=True) for path in paths])


def write(path: str | Path, x: Tensor) -> None:
    """Write a batch (B, ...) to .npy, to .safetensors (as "x"), or to a picture (one, or a sheet of them)."""
    path = Path(path)
    kind = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".npy":
        np.save(path, x.detach().cpu().numpy())
    elif kind == ".safetensors":
        save_file({"x": x.detach().cpu().contiguous()}, path)
    elif kind in _PICTURES:
        _pillow().fromarray(sheet(x)).save(path)
    else:
        raise InputError(f"{path}: unknown kind {kind!r}, expected .npy, .safetensors or {', '.join(_PICTURES)}")


def sheet(x: Tensor, columns: int | None = None) -> np.ndarray:
    """A batch of images (B, 1 or 3, h, w) in [-1, 1] as one picture, uint8, (H, W) or (H, W, 3)."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"x: got shape {tuple(x.shape)}, expected images of shape (B, 1 or 3, h, w)")
    n, channels, h, w = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    canvas = torch.full((rows * columns, channels, h, w), -1.0)
    canvas[:n] = x.detach().cpu().float()
    canvas = canvas.view(rows, columns, channels, h, w).permute(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * h, columns * w, channels)
    pixels = ((canvas + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels[:, :, 0] if channels == 1 else pixels


def _pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "lab", "reading and writing pictures") from error
    return Image


def _read_picture(path: Path, shape: tuple[int, ...], resize: bool) -> Tensor:
    image_module = _pillow()
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"{path}: the model's samples have shape {shape} and are no pictures")
    try:
        with image_module.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise InputError(f"{path}: {image.width} x {image.height} pixels, at most {_MAX_PIXELS} accepted")
            picture = image.convert("L" if shape[0] == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise CorruptFileError(f"{path}: no picture, or a damaged one ({error})") from error
    if picture.size != (shape[2], shape[1]):
        if not resize:
            raise InputError(
                f"{path}: the picture is {picture.width} x {picture.height}, the model's samples are "
                f"{shape[2]} x {shape[1]}; resize it, or pass --resize"
            )
        picture = picture.resize((shape[2], shape[1]), image_module.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)) / 127.5 - 1.0
    return pixels.view(shape[1], shape[2], shape[0]).permute(2, 0, 1)[None].contiguous()


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFileError(f"{path}: no plain .npy array, or a damaged one ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected an array of numbers, got {getattr(array, 'dtype', type(array))}")
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _read_safetensors(path: Path) -> Tensor:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(f"{path}: damaged, truncated, or no safetensors file ({error})") from error
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    if "x" in tensors:
        return tensors["x"]
    raise InputError(f"{path}: holds {len(tensors)} tensors, expected one, or one named 'x'")


def _fit(path: Path, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    x = x[None] if x.shape == shape else x
    if tuple(x.shape[1:]) != tuple(shape):
        raise InputError(f"{path}: got shape {tuple(x.shape)}, the model's samples are (B, {str(shape)[1:-1]})")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
