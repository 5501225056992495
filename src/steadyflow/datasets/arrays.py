"""Reading and writing batches of samples: PNG and other pictures, .npy, .safetensors.

Pictures are mapped from [0, 255] to [-1, 1] and back. Nothing is unpickled.
"""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._internal import files
from .._internal.pictures import as_seen, pillow, sheet
from ..errors import CorruptFileError, InputError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""The suffixes of the pictures that are read and written."""
_NAMES = {".jpg": "JPEG", ".tif": "TIFF"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_MAX_PIXELS = 64_000_000
_MAX_BYTES = 2**28
_BYTES = "{}: holds bytes; samples are floats, of pictures x / 127.5 - 1 in [-1, 1]"


def read(
    path: str | Path, shape: tuple[int, ...], *, resize: bool = False, rows: tuple[int, int] | None = None
) -> Tensor:
    """Read a batch of samples.

    Args:
        path: A picture, which gives one sample, as viewers show it (upright, over white); a .npy file; or a
            .safetensors file with one tensor, or one named "x". Arrays of one sample need no batch dimension.
        shape: The shape of one sample. For pictures, (1, H, W) is grey and (3, H, W) is colour.
        resize: Whether to scale a picture to the shape; else one of another size is refused.
        rows: Of an array, only the samples [start, stop); the others are not read.

    Returns:
        The samples, float32 or float64, shape (B, *shape).

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: The file is damaged, or not what its name says.
        InputError: The samples have another shape.
        MissingExtraError: It is a picture and Pillow is not installed.
    """
    path = Path(path)
    if path.suffix.lower() in PICTURES:
        _check_there(path)
        return _read_picture(path, shape, resize)
    with _stored(path) as (size, part):
        single = _check_fits(path, size, shape)
        start, stop = (0, 1 if single else size[0]) if rows is None else rows
        x = part(0, size[0])[None] if single else part(start, stop)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def length(path: str | Path, shape: tuple[int, ...]) -> int:
    """Count the samples in an array file.

    Args:
        path: A .npy or .safetensors file.
        shape: The shape of one sample.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: The file is damaged, or not what its name says.
        InputError: The samples have another shape.
    """
    with _stored(Path(path)) as (size, _):
        return 1 if _check_fits(Path(path), size, shape) else size[0]


def pictures(folder: str | Path) -> list[Path]:
    """List the pictures in a folder in the order of their names.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: It holds no pictures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not paths:
        raise InputError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
    return paths


def write(path: str | Path, x: Tensor) -> None:
    """Write a batch of samples; an existing file is replaced whole or not at all.

    Args:
        path: A file whose suffix says the kind: .npy; .safetensors, in which the tensor is named "x"; or a picture, of
            one sample or of a sheet of them.
        x: The samples, shape (B, ...).

    Raises:
        InputError: The suffix is unknown, or the samples are not images.
        StorageError: The file cannot be written.
        MissingExtraError: It is a picture and Pillow is not installed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".npy", ".safetensors", *PICTURES):
        raise InputError(f"{path}: unknown kind {kind!r}, expected .npy, .safetensors or {', '.join(PICTURES)}")
    picture = pillow().fromarray(sheet(x)) if kind in PICTURES else None
    with files.replacing(path) as part:
        if kind == ".npy":
            with part.open("wb") as file:
                np.save(file, x.detach().cpu().numpy())
        elif kind == ".safetensors":
            save_file({"x": x.detach().cpu().contiguous()}, part)
        elif picture is not None:
            picture.save(part, format=_NAMES.get(kind, kind[1:].upper()))


def open_picture(path: Path, *, grey: bool = False) -> Any:
    """Open a picture as viewers show it.

    Args:
        path: The file.
        grey: Whether to return grey instead of colour.

    Returns:
        A picture of Pillow, in eight bits.

    Raises:
        CorruptFileError: It is no picture, or a damaged one.
        InputError: It is larger than what is accepted.
    """
    image_module = pillow()
    _check_there(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: a picture of {path.stat().st_size} bytes, at most {_MAX_BYTES} accepted")
    data = io.BytesIO(path.read_bytes())  # a claim of more than there is takes no memory here, as it does in a file
    try:
        with image_module.open(data, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise InputError(f"{path}: {image.width} x {image.height} pixels, at most {_MAX_PIXELS} accepted")
            return as_seen(image, grey=grey, name=str(path))
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise CorruptFileError(f"{path}: no picture, or a damaged one ({error})") from error


def _read_picture(path: Path, shape: tuple[int, ...], resize: bool) -> Tensor:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"{path}: the model's samples have shape {shape} and are no pictures")
    picture = open_picture(path, grey=shape[0] == 1)
    if picture.size != (shape[2], shape[1]):
        if not resize:
            raise InputError(
                f"{path}: the picture is {picture.width} x {picture.height}, the model's samples are "
                f"{shape[2]} x {shape[1]}; resize it, pass --resize, or give from_diffusers the picture's height and "
                "width"
            )
        picture = picture.resize((shape[2], shape[1]), pillow().Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)) / 127.5 - 1.0
    return pixels.view(shape[1], shape[2], shape[0]).permute(2, 0, 1)[None].contiguous()


_READING = threading.Lock()
"""Held while NumPy reads a header as Python's syntax, which Python 3.11 cannot do in two threads at once."""
Stored = tuple[tuple[int, ...], Callable[[int, int], Tensor]]
"""The shape of an array in a file, and how to read some of its rows."""


@contextmanager
def _stored(path: Path) -> Iterator[Stored]:
    """The array in a file, of which nothing but the header has been read."""
    _check_there(path)
    kind = path.suffix.lower()
    if kind == ".npy":
        array = _mapped(path)
        wide = array.dtype.kind == "f" and array.dtype.itemsize >= 8
        precision = np.float64 if wide else np.float32
        yield array.shape, lambda start, stop: torch.from_numpy(np.array(array[start:stop], dtype=precision))
    elif kind == ".safetensors":
        try:
            with files.named_in_utf8(path) as name, safe_open(name, framework="pt") as file:
                part = file.get_slice(_tensor_name(path, list(file.keys())))
                if part.get_dtype() == "U8":
                    raise InputError(_BYTES.format(path))
                yield tuple(part.get_shape()), lambda start, stop: _on_cpu(part, start, stop)
        except (SafetensorError, OSError) as error:
            raise CorruptFileError(f"{path}: damaged, truncated, or no safetensors file ({error})") from error
    else:
        raise InputError(f"{path}: unknown kind {kind!r}, expected .npy, .safetensors or {', '.join(PICTURES)}")


def _on_cpu(part: Any, start: int, stop: int) -> Tensor:
    with torch.device("cpu"):  # whatever the default is
        return part[start:stop]


def _check_there(path: Path) -> None:
    files.check_regular(path)


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        with _READING:
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header cannot make it allocate
    except Exception as error:  # numpy's reading of headers raises whatever it meets: SyntaxError, TokenError, ...
        raise CorruptFileError(f"{path}: no plain .npy array, or a damaged one ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected an array of numbers, got {getattr(array, 'dtype', type(array))}")
    if array.dtype == np.uint8:
        raise InputError(_BYTES.format(path))
    return array


def _tensor_name(path: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if "x" in names:
        return "x"
    raise InputError(f"{path}: holds {len(names)} tensors, expected one, or one named 'x'")


def _check_fits(path: Path, size: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array of this size is a single sample without the batch; raises unless it is samples of the shape."""
    if size == tuple(shape):
        return True
    if size[1:] != tuple(shape):
        raise InputError(f"{path}: got shape {size}, the model's samples are (B, {str(tuple(shape))[1:-1]})")
    return False
