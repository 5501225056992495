"""Writing files whole or not at all, and reading them safely.

Our own files are safetensors with a kind in the header; a damaged or foreign one is refused with a reason.
"""

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CorruptFileError, StorageError
from . import places

_FORMAT = "steadyflow"
_VERSION = "1"
PART = places.PART
"""The suffix of files that are being written."""


def write(path: str | Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a safetensors file; an existing file is replaced whole or not at all.

    Args:
        path: The file.
        kind: What the file is, such as "model".
        tensors: The tensors by name.
        metadata: The text by name.

    Raises:
        StorageError: The file cannot be written.
    """
    header = {**metadata, "format": _FORMAT, "version": _VERSION, "kind": kind}
    plain, seen = dict[str, Tensor](), set[int]()
    for name, given in tensors.items():
        t = given.detach().cpu().contiguous()
        storage = t.untyped_storage().data_ptr()
        plain[name] = t.clone() if storage in seen else t  # the format takes no memory twice
        seen.add(storage)
    with replacing(path) as part:
        save_file(plain, part, header)


def content(x: Tensor) -> bytes:
    """The bytes of a tensor, preceded by its type and shape, to be hashed."""
    flat = x.detach().cpu().contiguous().flatten().view(torch.uint8)
    return f"{x.dtype}{tuple(x.shape)}".encode() + flat.numpy().tobytes()


def digest(about: object, tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors together with a description of them.

    Args:
        about: The description, of which the `repr` is hashed.
        tensors: The tensors by name.

    Returns:
        Sixteen hexadecimal digits.
    """
    hashed = hashlib.sha256(repr(about).encode())
    for name, value in sorted(tensors.items()):
        hashed.update(name.encode())
        hashed.update(content(value))
    return hashed.hexdigest()[:16]


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Make a context in which to write a file beside another, which takes its place at the end.

    It does so once it is on the disk, with the other's mode; if an error is raised, it is deleted and the other file is
    untouched. Links are followed. A file with several names, a pipe and a stream are written into at the end; if that
    fails, the file that was to go there is kept, and the error says where.

    Args:
        path: The file to replace.

    Yields:
        The file to write.

    Raises:
        StorageError: The file cannot be written.
    """
    part, whole, taken = None, False, False
    try:
        place = places.find(path)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be written ({error})") from error
    try:
        part, takes = place.part()
        yield part
        if takes:
            place.settle(part)
        _flush(part)
        whole = True
        if takes:
            os.replace(part, place.target)
            _flush(place.target.parent)
        else:
            place.copy(part)
        taken = True
    except (OSError, SafetensorError) as error:
        kept = f"it is kept in {part}" if whole else "what was there is untouched"
        raise StorageError(f"{path}: could not be written ({error}); {kept}") from error
    finally:
        if part is not None and (taken or not whole):
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file; an existing file is replaced whole or not at all.

    Args:
        path: The file.
        text: The text.

    Raises:
        StorageError: The file cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def check_regular(path: Path) -> None:
    """Check that there is a file of a size that is known, and no folder, pipe or device.

    Raises:
        FileNotFoundError: There is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file" if not path.exists() else f"{path}: is no regular file")


def read_text(path: str | Path, most: int = 64 * 2**20) -> str:
    """Read a text file of a bounded size, also from a pipe.

    Args:
        path: The file.
        most: The largest number of bytes that is read.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: It is larger, is no text, or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            found = file.read(most + 1)
        if len(found) > most:
            raise CorruptFileError(f"{path}: has more than {most} bytes, too many for what it is to be")
        return found.decode()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path}: cannot be read as text ({error})") from error


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    folder = path.is_dir()
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # some network file systems flush no folders
    finally:
        os.close(handle)


@contextlib.contextmanager
def named_in_utf8(path: Path) -> Iterator[str]:
    """Make a context with a name of a file that is valid UTF-8, as safetensors reads no others.

    Args:
        path: The file.

    Yields:
        Its name, or that of a link to it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / f"link{path.suffix}"
            link.symlink_to(path.absolute())
            yield str(link)
    else:
        yield str(path)


def read(path: str | Path, kind: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that `write` wrote.

    Args:
        path: The file.
        kind: What the file must be; None for any kind.

    Returns:
        The tensors and the text, each by name.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: The file is damaged or truncated, of another kind, or not written by steadyflow.
    """
    path = Path(path)
    check_regular(path)
    try:
        with (
            torch.device("cpu"),
            named_in_utf8(path) as name,
            safe_open(name, framework="pt") as file,
        ):  # on any default
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(f"{path}: damaged, truncated, or no safetensors file ({error})") from error
    fits = "kind" in metadata and kind in (None, metadata["kind"])
    if metadata.get("format") != _FORMAT or not fits:
        found = metadata.get("kind", "file of another program")
        raise CorruptFileError(f"{path}: expected a steadyflow {kind or 'file'}, found a {found}")
    if metadata.get("version") != _VERSION:
        raise CorruptFileError(f"{path}: file version {metadata.get('version')}, expected {_VERSION}")
    return tensors, metadata
