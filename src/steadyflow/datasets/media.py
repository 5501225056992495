"""Files of what a model's samples are: pictures, videos or sounds, read as the model takes them and written back.

`read(path, model)` and `write(path, x, model)` look at the model (see `_internal.kinds`) and at the suffix of the file.
What does not fit is refused, with what would.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .._internal import files, places, sounds, video_writing, videos
from .._internal.kinds import Kind, decoded_shape, frame_rate, kind_of, sample_rate, words
from .._internal.sounds import SOUNDS
from .._internal.videos import VIDEOS
from ..errors import InputError
from . import arrays
from .arrays import PICTURES

Decoded = Tensor | Mapping[str, Tensor]
"""What a model decodes to: pictures, videos or sounds, or several of them by name."""

ARRAYS = (".npy", ".safetensors")
STILLS = tuple(kind for kind in PICTURES if kind not in VIDEOS)
_OUT: dict[Kind, tuple[str, ...]] = {
    "pictures": PICTURES,
    "videos": VIDEOS,
    "sounds": SOUNDS,
    "joined": tuple(kind for kind in VIDEOS if kind != ".gif"),
    "numbers": (),
}
_IN: dict[Kind, str] = {
    "pictures": f"a picture ({', '.join(PICTURES)})",
    "videos": f"a video ({', '.join(VIDEOS)}) or a folder of numbered frames",
    "sounds": f"a sound ({', '.join(SOUNDS)})",
    "joined": "an array of states (.npy, .safetensors)",
    "numbers": "an array (.npy, .safetensors)",
}


def is_array(path: str | Path) -> bool:
    """Whether a file holds states as numbers, and no pictures, videos or sounds.

    Args:
        path: The file, or a folder.
    """
    return Path(path).suffix.lower() in ARRAYS and not Path(path).is_dir()


def read(path: str | Path, model: Any, *, resize: bool = False, frames: slice | None = None) -> Tensor:
    """Read one sample as what the model decodes to.

    Args:
        path: A picture for a model of pictures; for one of videos, a video or a folder of frames in the order of their
            numbers; for one of sounds, a .wav.
        model: The model, which says the shape and the sample rate.
        resize: Whether to scale pictures and frames to the model's size, and to resample sounds to its rate; else
            others are refused.
        frames: Which frames of a video to take; all by default, of which the model takes the first.

    Returns:
        The sample in [-1, 1], float32, shape (1, *shape).

    Raises:
        FileNotFoundError: There is no such file or folder.
        CorruptFileError: The file is damaged, or not what its name says.
        InputError: It is not what the model's samples are, or does not fit them.
        MissingExtraError: The package that reads it is not installed.
    """
    path, kind = Path(path), kind_of(model)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if frames is not None and kind != "videos":
        raise InputError(f"frames: says which frames of a video to take; the model's samples are {_words(model)}")
    if kind in ("pictures", "numbers") and suffix in PICTURES and path.is_file():
        return arrays.read(path, decoded_shape(model), resize=resize)
    if kind == "videos":
        shape = decoded_shape(model)
        if path.is_dir():
            return _read_frames(path, shape, resize, frames)
        if suffix in VIDEOS:
            return videos.read(path, shape, resize=resize, frames=frames)
        if suffix in STILLS and shape[1] == 1 and frames is None:
            return arrays.read(path, (shape[0], *shape[2:]), resize=resize)[:, :, None]
    if kind == "sounds" and suffix in SOUNDS and path.is_file():
        return sounds.read(path, decoded_shape(model), sample_rate(model), resize=resize)
    raise InputError(f"{path}: is {_what(path)}, but the model's samples are {_words(model)}; give {_IN[kind]}")


def read_mask(path: str | Path, model: Any) -> Tensor:
    """Read a mask over the pixels of a model of pictures or videos, scaled to their size.

    Args:
        path: A picture; for videos also a video, or a folder of frames, which has as many frames as the model.
        model: The model.

    Returns:
        The share of white, in [0, 1], shape (1 or F, H, W).

    Raises:
        FileNotFoundError: There is no such file or folder.
        CorruptFileError: The file is damaged, or not what its name says.
        InputError: It is no mask for such samples.
        MissingExtraError: The package that reads it is not installed.
    """
    path, kind, shape = Path(path), kind_of(model), decoded_shape(model)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if kind == "videos" and (path.is_dir() or suffix in VIDEOS):
        grey = (1, *shape[1:])
        moving = _read_frames(path, grey, True, None) if path.is_dir() else videos.read(path, grey, resize=True)
        return (moving[0, 0] + 1.0) / 2.0
    if kind not in ("pictures", "videos"):
        raise InputError(f"mask: a picture says nothing of the model's samples, which are {_words(model)}")
    if suffix not in PICTURES:
        more = ", a video or a folder of frames" if kind == "videos" else ""
        raise InputError(f"mask: {path} is {_what(path)}, expected a picture ({', '.join(PICTURES)}){more}")
    return (arrays.read(path, (1, *shape[-2:]), resize=True)[0] + 1.0) / 2.0


def listed(path: str | Path, model: Any) -> list[Path]:
    """The files or folders of one sample each behind a path, in the order of their names.

    Args:
        path: A file, which is one sample; or a folder of them. For a model of videos, a folder of pictures is one
            sample, and in a folder of such folders each is one.
        model: The model.

    Raises:
        FileNotFoundError: There is no such file or folder.
        InputError: The folder holds nothing that the model takes.
    """
    path, kind = Path(path), kind_of(model)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    if kind in ("pictures", "numbers"):
        return arrays.pictures(path)
    found = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    own = [p for p in found if p.is_file() and p.suffix.lower() in (VIDEOS if kind == "videos" else SOUNDS)]
    if kind == "videos":
        stills = [p for p in found if p.suffix.lower() in STILLS]
        inner = [p for p in found if p.is_dir() and stills_in(p)]
        if sum(map(bool, (own, stills, inner))) > 1:
            raise InputError(
                f"{path}: holds {len(own)} videos, {len(stills)} pictures and {len(inner)} folders of pictures; give a "
                "folder of videos, of the numbered frames of one, or of folders of frames"
            )
        own = own or inner or ([path] if stills else [])
    if not own or kind == "joined":
        raise InputError(f"{path}: holds nothing that fits; the model's samples are {_words(model)}; give {_IN[kind]}")
    return own


def scanned(path: str | Path, model: Any) -> Iterator[str]:
    """The names of what `listed` lists, in any order; a folder of pictures is looked through without a list of it.

    Args:
        path: As in `listed`.
        model: As in `listed`.

    Yields:
        Names in the folder; an empty one for the path itself. Raises as `listed` does.
    """
    path = Path(path)
    if not path.is_dir() or kind_of(model) not in ("pictures", "numbers"):
        yield from ("" if one == path else one.name for one in listed(path, model))
        return
    there = False
    with os.scandir(path) as found:
        for entry in found:
            if os.path.splitext(entry.name)[1].lower() in PICTURES:
                there = True
                yield entry.name
    if not there:
        arrays.pictures(path)  # which says that there are none


def rate_of(path: str | Path) -> float | None:
    """The frames per second that a video says it has; None for frames in a folder, and for a file that is gone.

    Args:
        path: The video.
    """
    path = Path(path)
    return videos.rate_of(path) if path.suffix.lower() in VIDEOS and path.is_file() else None


def check_writes(path: str | Path, model: Any = None, *, n: int = 1, decoded: bool = True) -> None:
    """Check, before the work, that samples of a model can be written to a place.

    Args:
        path: A file, or a name without a suffix for a folder.
        model: The model; None where it is not known.
        n: How many samples there will be.
        decoded: Whether they are decoded; else latents are written.

    Raises:
        InputError: The kind of file is unknown, does not hold such samples, or cannot be written there.
        MissingExtraError: The package that writes it is not installed.
    """
    _check_kind(Path(path), model, n, decoded)
    places.check_writable(path, folder=not Path(path).suffix)


def _check_kind(path: Path, model: Any, n: int, decoded: bool) -> None:
    kind, suffix = _kind(model, decoded), path.suffix.lower()
    if suffix not in ("", *ARRAYS, *PICTURES, *VIDEOS, *SOUNDS):
        raise InputError(
            f"out: {path.name} is of an unknown kind; expected a .npy or a folder for pictures, .safetensors, one "
            f"picture ({', '.join(PICTURES)}), a video ({', '.join(VIDEOS)}) or a sound ({', '.join(SOUNDS)})"
        )
    if model is None or suffix == ".safetensors" or (suffix == ".npy" and kind != "joined"):
        return
    if kind in ("pictures", "numbers"):
        if suffix in PICTURES or suffix == "":
            return  # whether they are pictures is said where they are written
    elif suffix != "" and suffix not in _OUT[kind]:
        raise InputError(f"out: {path.name} holds no {_noun(kind)}; expected {_accepted(kind)}")
    if kind in ("pictures", "numbers"):
        what = "latents" if not decoded and hasattr(model, "decode") else _words(model)
        raise InputError(f"out: {path.name} cannot be written, as the samples are {what}; expected {_accepted(kind)}")
    if kind in ("sounds", "joined"):
        if sample_rate(model) is None:
            raise InputError(f"out: the model does not say its sample_rate, which {_place(path)} needs; give a .npy")
        if suffix and n > 1:
            raise InputError(f"out: {path.name} holds one sample, and there are {n}; give a folder for one file each")
    if kind == "sounds":
        sounds.wavfile()
    elif suffix:
        video_writing.check_writes(path, sound=kind == "joined")
    elif kind == "joined":
        videos.pyav()


def write(path: str | Path, x: Decoded, model: Any = None, *, fps: float | None = None, decoded: bool = True) -> None:
    """Write samples to one file; an existing one is replaced whole or not at all.

    Args:
        path: A .npy or .safetensors; a picture, or a sheet of several; a video, or several side by side; or a sound.
        x: The samples as the model decodes them, shape (B, ...), or several such by name.
        model: The model; without one the samples' shape says what they are.
        fps: The frames per second of videos; those of the model by default.
        decoded: Whether the samples are decoded; else they are latents.

    Raises:
        InputError: The kind of file is unknown, or does not hold such samples.
        StorageError: The file cannot be written.
        MissingExtraError: The package that writes it is not installed.
    """
    path = Path(path)
    suffix, kind = path.suffix.lower(), _kind(model, decoded)
    rate = frame_rate(model) if fps is None else fps
    if isinstance(x, Mapping):
        _write_joined(path, dict(x), rate, model)
    elif suffix in VIDEOS and (kind == "videos" or (model is None and x.ndim == 5)):
        video_writing.write(path, x, rate)
    elif suffix in SOUNDS:
        hz = sample_rate(model)
        if kind != "sounds" or hz is None or len(x) != 1:
            raise InputError(f"{path}: expected one sound of a model that says its sample_rate; got {tuple(x.shape)}")
        sounds.write(path, x[0], hz)
    else:
        arrays.write(path, x)


def write_each(
    folder: str | Path, x: Decoded, start: int, model: Any = None, *, fps: float | None = None, decoded: bool = True
) -> None:
    """Write one file per sample, named by its number: a PNG, a folder with a PNG per frame, a .wav, or an .mp4.

    Args:
        folder: Where to write.
        x: As in `write`.
        start: The number of the first sample.
        model: As in `write`.
        fps: As in `write`.
        decoded: As in `write`.

    Raises:
        InputError: The samples are no pictures, videos or sounds.
        StorageError: A file cannot be written.
        MissingExtraError: The package that writes them is not installed.
    """
    folder, kind = Path(folder), _kind(model, decoded)
    if isinstance(x, Mapping):
        for k in range(len(next(iter(x.values())))):
            _write_joined(folder / f"{start + k:09d}.mp4", {n: v[k : k + 1] for n, v in x.items()}, fps, model)
        return
    for k in range(len(x)):
        name, one = f"{start + k:09d}", x[k : k + 1]
        if kind == "videos" or (model is None and x.ndim == 5):
            write_frames(folder / name, [one])
        else:
            write(folder / f"{name}{'.wav' if kind == 'sounds' else '.png'}", one, model, decoded=decoded)


def _kind(model: Any, decoded: bool) -> Kind:
    """What is to be written: of a model of latents that are not decoded, numbers."""
    if model is None or (not decoded and hasattr(model, "decode")):
        return "numbers"
    return kind_of(model)


def _words(model: Any) -> str:
    kind = kind_of(model)
    return words(kind, None if kind == "joined" else decoded_shape(model))


def _noun(kind: Kind) -> str:
    return "videos with their sound" if kind == "joined" else kind


def _accepted(kind: Kind) -> str:
    own = [*(ARRAYS if kind != "joined" else ARRAYS[1:]), *_OUT[kind]]
    return f"{', '.join(own)}" + ("" if kind == "numbers" else ", or a name without a suffix for a folder")


def _place(path: Path) -> str:
    return f"a {path.suffix.lower()}" if path.suffix else "a folder of files"


def _what(path: Path) -> str:
    """What a path looks like."""
    suffix = path.suffix.lower()
    kinds = {**dict.fromkeys(SOUNDS, "a sound"), **dict.fromkeys(VIDEOS, "a video")}
    kinds |= dict.fromkeys(PICTURES, "a picture") | {".gif": "a GIF"}
    return "a folder" if path.is_dir() else kinds.get(suffix, f"of unknown kind {suffix!r}")


def stills_in(folder: Path) -> list[Path]:
    """The pictures in a folder, in the order of the numbers in their names."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in STILLS and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [(int(w) if w.isdigit() else -1, w) for w in re.split(r"(\d+)", p.name)])


def _read_frames(folder: Path, shape: tuple[int, ...], resize: bool, frames: slice | None) -> Tensor:
    """A folder of numbered frames as one video, shape (1, *shape)."""
    channels, count, height, width = shape
    there = stills_in(folder)
    if not there:
        raise InputError(f"{folder}: holds no numbered frames ({', '.join(STILLS)})")
    chosen = there if frames is None else there[frames]
    if len(chosen) < count:
        which = "" if frames is None else f" between {videos.frames_text(frames)}"
        raise InputError(
            f"{folder}: has {len(chosen)} frames{which}, but the model's videos have {count}; give a longer one, or a "
            "model of fewer frames"
        )
    if len(chosen) > count:
        videos.warn_of_more(folder, len(chosen), count, frames)
    pictures = [arrays.read(path, (channels, height, width), resize=resize) for path in chosen[:count]]
    return torch.stack(pictures, 2)


def write_frames(folder: Path, parts: Iterable[Tensor]) -> None:
    """Write a video that comes in parts (1, C, frames, H, W) as a PNG per frame; more that were there are removed."""
    count = 0
    for count, frame in enumerate((frame for x in parts for frame in x.unbind(2)), 1):
        arrays.write(folder / f"{count - 1:09d}.png", frame)
    for old in folder.glob("*.png"):
        if re.fullmatch(r"\d{9}", old.stem) and int(old.stem) >= count:
            old.unlink()


def _write_joined(path: Path, x: dict[str, Tensor], fps: float | None, model: Any) -> None:
    """Several things by name: tensors in a .safetensors, or one video with its sound."""
    suffix, names = path.suffix.lower(), ", ".join(x)
    if suffix == ".safetensors":
        with files.replacing(path) as part:
            save_file({name: value.detach().cpu().contiguous() for name, value in x.items()}, part)
        return
    if suffix not in _OUT["joined"]:
        raise InputError(f"{path}: the samples decode to {names}; expected {_accepted('joined')}")
    rate = sample_rate(model)
    if set(x) != {"video", "audio"} or rate is None:
        raise InputError(f"{path}: a {suffix} needs a 'video', an 'audio' and the model's sample_rate; got {names}")
    if len(x["video"]) != 1:
        raise InputError(f"{path}: holds one sample, and there are {len(x['video'])}; give a folder for one file each")
    video_writing.write(path, x["video"], frame_rate(model) if fps is None else fps, (x["audio"][0], rate))


def numbers(x: Decoded) -> int:
    """How many numbers one sample has.

    Args:
        x: Samples as a model decodes them.
    """
    return sum(v[0].numel() for v in x.values()) if isinstance(x, Mapping) else x[0].numel()
