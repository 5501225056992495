"""Sounds: WAV files of any width, read and written by SciPy, as samples in [-1, 1]."""

import io
import math
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import CorruptFileError, InputError
from . import files
from .imports import needing

SOUNDS = (".wav",)
"""The suffixes of the sounds that are read and written."""
_MAX_BYTES = 2**30
_FASTEST = 768_000
"""The highest sample rate in Hz that sounds are made at."""


def wavfile() -> ModuleType:
    """SciPy's module `io.wavfile`.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    with needing("SciPy", "scipy.io", extra="audio", purpose="reading and writing sounds"):
        from scipy.io import wavfile
    return wavfile


def read(path: Path, shape: tuple[int, ...], rate: int | None, *, resize: bool = False) -> Tensor:
    """Read the beginning of a sound.

    One channel is repeated where the model has more, and several are averaged where it has one, with a warning.

    Args:
        path: A .wav of 8, 16, 24 or 32 bits, or of floats.
        shape: The shape of one sample, (channels, n).
        rate: The model's sample rate in Hz, or None where it does not say it.
        resize: Whether to resample a sound of another rate; else it is refused.

    Returns:
        The sound in [-1, 1], float32, shape (1, *shape). Of a longer one the beginning, with a warning.

    Raises:
        CorruptFileError: The file is damaged, or not what its name says.
        InputError: The sound is too short, has another rate, or as many channels as do not fit.
        MissingExtraError: SciPy is not installed.
    """
    channels, count = shape
    own, values = _stored(path)
    if rate is None:
        if resize:
            raise InputError("resize: the model does not say its sample_rate, so that no sound can be resampled to it")
        warnings.warn(f"{path}: the model does not say its sample_rate; {own} Hz is taken to be it", stacklevel=4)
    elif own != rate:
        if not resize:
            raise InputError(f"{path}: has {own} Hz, the model's sounds have {rate} Hz; resample it, or pass --resize")
        values = _resampled(values, own, rate)
    values = _with_channels(values, channels, path)
    if values.shape[1] < count:
        raise InputError(
            f"{path}: has {values.shape[1]} samples ({values.shape[1] / (rate or own):.3g} s), but the model's sounds "
            f"have {count} ({count / (rate or own):.3g} s); give a longer one"
        )
    if values.shape[1] > count:
        warnings.warn(
            f"{path}: lasts {values.shape[1] / (rate or own):.3g} s, of which the first {count / (rate or own):.3g} s "
            "are taken",
            stacklevel=4,
        )
    return torch.from_numpy(np.ascontiguousarray(values[:, :count], dtype=np.float32))[None]


def write(path: Path, x: Tensor, rate: int) -> None:
    """Write one sound as a .wav of 32-bit floats, which loses nothing; a file is replaced whole or not at all.

    Args:
        path: The file.
        x: The sound, in [-1, 1] where it is to be heard as it is, shape (channels, n).
        rate: Its sample rate in Hz.

    Raises:
        InputError: x has another shape.
        StorageError: The file cannot be written.
        MissingExtraError: SciPy is not installed.
    """
    module, values = wavfile(), _columns(x)
    with files.replacing(path) as part, part.open("wb") as file:
        module.write(file, rate, values)


def wav(x: Tensor, rate: int) -> bytes:
    """One sound as a WAV of 16 bits in memory, which every browser plays.

    Args:
        x: The sound in [-1, 1], shape (channels, n).
        rate: Its sample rate in Hz.

    Raises:
        InputError: x has another shape.
        MissingExtraError: SciPy is not installed.
    """
    buffer = io.BytesIO()
    wavfile().write(buffer, rate, (_columns(x).clip(-1.0, 1.0) * 32767.0).round().astype(np.int16))
    return buffer.getvalue()


def layout(x: Tensor) -> str:
    """FFmpeg's name for the channels of a sound.

    Args:
        x: The sound, shape (channels, n).

    Raises:
        InputError: There are more than two.
    """
    names = {1: "mono", 2: "stereo"}
    if x.ndim != 2 or x.shape[0] not in names:
        raise InputError(f"audio: got shape {tuple(x.shape)}, expected one or two channels: (1 or 2, samples)")
    return names[x.shape[0]]


def _columns(x: Tensor) -> npt.NDArray[np.float32]:
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected a sound of shape (channels, samples)")
    return x.detach().cpu().float().numpy().T


def _stored(path: Path) -> tuple[int, npt.NDArray[np.float64]]:
    """The rate and the values in [-1, 1] of a file, shape (channels, n)."""
    module = wavfile()
    files.check_regular(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: a sound of {path.stat().st_size} bytes, at most {_MAX_BYTES} accepted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", module.WavFileWarning)
            warnings.filterwarnings("error", message="Reached EOF prematurely")
            rate, values = module.read(io.BytesIO(path.read_bytes()))
    except OSError:
        raise
    except Exception as error:  # SciPy's reading of headers raises whatever it meets
        raise CorruptFileError(f"{path}: no .wav, or a damaged one ({error})") from error
    if values.dtype.kind == "u":
        values = (values.astype(np.float64) - 128.0) / 128.0
    elif values.dtype.kind == "i":  # 24 bits come as the high ones of 32
        values = values.astype(np.float64) / 2.0 ** (8 * values.dtype.itemsize - 1)
    else:
        values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinity")
    if not 0 < rate <= _FASTEST:
        raise CorruptFileError(f"{path}: says it has {rate} Hz, expected at most {_FASTEST}")
    return int(rate), values[None] if values.ndim == 1 else values.T


def _resampled(values: npt.NDArray[np.float64], own: int, rate: int) -> npt.NDArray[np.float64]:
    """The values at another rate, by a polyphase filter."""
    from scipy.signal import resample_poly

    shared = math.gcd(own, rate)
    return resample_poly(values, rate // shared, own // shared, axis=1)


def _with_channels(values: npt.NDArray[np.float64], channels: int, path: Path) -> npt.NDArray[np.float64]:
    if len(values) == channels:
        return values
    if len(values) == 1:
        warnings.warn(f"{path}: has one channel, which is repeated for the model's {channels}", stacklevel=5)
        return values.repeat(channels, 0)
    if channels == 1:
        warnings.warn(f"{path}: has {len(values)} channels, whose mean is taken", stacklevel=5)
        return values.mean(0, keepdims=True)
    raise InputError(f"{path}: has {len(values)} channels, the model's sounds have {channels}")
