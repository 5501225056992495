"""Addressed random numbers: a sample gets the same noise, however the work is divided into batches.

Every number is a function of (seed, stream, place in the path, sample index, position in the sample). The
generator is PCG64 DXSM, which can jump to any place of its sequence: the SHA-256 of seed, stream and node selects
one of 2^255 sequences, the sample and the position select a place in it, and the Box-Muller transform turns the bits
into normal numbers. Nothing depends on batch size, order, chunking, thread or device, and nothing is stored. The bits
are the same on every machine; the last digits of logarithm, sine and cosine depend on the processor and NumPy's
version.

`Brownian` is a Brownian motion W over a clock c >= 0 of any range. The clock's axis is divided at the powers of
two. Within a binade [2^k, 2^(k+1)] the path is built by halving (Levy's construction), down to 2^-20 of the
binade: the midpoint of an interval of length h is the mean of its ends plus N(0, h/4). Clock values are
rounded to that lattice, so increments over adjoining intervals add up to rounding, and a finer grid refines
the same path.

`White` draws independent noise for every interval. It is cheaper (one draw per query instead of about ten to twenty)
and addressed in the same way, but two grids then see unrelated noise.
"""

import hashlib
import math
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from ._internal.given import device_of, floating, whole
from .errors import InputError

INITIAL, BROWNIAN, WHITE, PERTURBATION, AREA, RENOISING, SMOOTHING, STEERING = 0, 1, 2, 3, 4, 5, 6, 7
"""Streams, one for each use of noise. Different streams of one seed are independent."""

_CELL = 2**9  # numbers drawn together, at least
_AT_ONCE = 2**16 // _CELL  # cells at a time: their intermediate values stay in a core's cache
_REEL = 2**48 // (_CELL // 2)  # cells from one sequence of a generator, far fewer than its period of 2^128 words
_HALF, _LARGEST, _RADIANS = (np.array(x, dtype=np.float32) for x in (0.5, 2.0**62, math.pi * 2.0**-31))
_LEVELS = 20  # halvings within a binade
_FLOOR = -60  # [0, 2^_FLOOR] is one cell
_WORD = (1 << 64) - 1

_from_numpy: Callable[[np.ndarray], Tensor] = cast(Any, torch).from_numpy  # which torch leaves untyped


def normal(
    seed: int,
    stream: int,
    node: tuple[int, int, int],
    samples: range | Sequence[int],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return standard normal numbers, shape (len(samples), *shape); the row of a sample depends on its index alone.

    Values are drawn in float32 (tails reach 6.66: of 4e10 numbers, one should lie beyond) and are then cast, so that
    runs in different precisions see the same noise.

    Args:
        seed: Any integer; its low 64 bits count.
        stream: What the noise is for, one of the streams above.
        node: Three integers of 64 bits, the place in the stream.
        samples: The indices of the samples, one per row.
        shape: The shape of one sample.
        dtype: The type of the result.
        device: The device of the result.

    Raises:
        InputError: An index is negative.
    """
    size = math.prod(shape)
    seed, dtype = whole("seed", seed), floating(dtype)
    device = device if isinstance(device, torch.device) else device_of(device)
    rows = [_rows(seed, stream, node, run, size) for run in _runs(samples)]
    flat = rows[0] if len(rows) == 1 else np.concatenate(rows)
    numbers = _from_numpy(flat.reshape(len(samples), *shape))
    if device.type == "cpu":
        return numbers if dtype == torch.float32 else numbers.to(dtype)
    if device.type == "cuda":
        numbers = numbers.pin_memory()  # so that the copy waits for nothing
    return numbers.to(device=device, dtype=dtype, non_blocking=True)


def like(
    x: Tensor, seed: int, stream: int, node: tuple[int, int, int], samples: range | Sequence[int] | None = None
) -> Tensor:
    """Return `normal` numbers with the shape, type and device of the batch x; `samples` are 0 to B - 1 by default."""
    rows = range(len(x)) if samples is None else samples
    return normal(seed, stream, node, rows, x.shape[1:], dtype=x.dtype, device=x.device)


def _runs(samples: range | Sequence[int]) -> list[range]:
    """Return the sample indices as a list of contiguous ranges, in the given order."""
    if isinstance(samples, range) and samples.step == 1:
        return [samples]
    runs: list[range] = []
    for i in (whole("samples", index) for index in samples):
        if runs and runs[-1].stop == i:
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    return runs


def _rows(seed: int, stream: int, node: tuple[int, int, int], run: range, size: int) -> np.ndarray:
    """Return the numbers of a range of samples, flat: samples follow each other in the endless sequence of a node."""
    if run.start < 0:
        raise InputError(f"samples: got the index {run.start}, expected indices >= 0")
    start, stop = run.start * size, run.stop * size
    first = start // _CELL
    cells = np.empty((-(-stop // _CELL) - first, 2, _CELL // 2), dtype=np.float32)
    done = 0
    while done < len(cells):
        reel, place = divmod(first + done, _REEL)
        part = cells[done : done + min(_AT_ONCE, _REEL - place)]
        _fill(part, _threads.generator((seed, stream, *node, reel), place * (_CELL // 2)))
        done += len(part)
    offset = start - first * _CELL
    return cells.reshape(-1)[offset : offset + stop - start]


def _fill(cells: np.ndarray, generator: np.random.PCG64DXSM) -> None:
    """Fill cells, float32 of shape (n, 2, _CELL / 2), with standard normal numbers by the Box-Muller transform.

    The first half of a cell's 32-bit words gives radii, the second half angles; the cosines fill the cell's first
    half, the sines the second. NumPy's vectorised functions thus work on the same whole cells, and give the same last
    digits, wherever a batch begins and ends.
    """
    words = generator.random_raw(cells.size // 2).view(np.int32).reshape(cells.shape)
    radius, angle = words[:, 0].astype(np.float32), words[:, 1].astype(np.float32)
    # radius^2 = -2 ln u = ln 2^62 / (word + 1/2)^2 of u = 2^-31 |word + 1/2|, from 2^-32 (the tails) to 1
    radius += _HALF
    np.square(radius, out=radius)
    np.divide(_LARGEST, radius, out=radius)
    np.log(radius, out=radius)
    np.sqrt(radius, out=radius)
    angle *= _RADIANS
    np.multiply(radius, np.cos(angle), out=cells[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=cells[:, 1])


class _Threads(threading.local):
    """One bit generator per thread, as setting the state of one takes less time than creating one."""

    def __init__(self) -> None:
        self._generator = np.random.PCG64DXSM(0)

    def generator(self, address: tuple[int, ...], place: int) -> np.random.PCG64DXSM:
        """Return the thread's generator, set to 64-bit word `place` of the sequence at an address of six words."""
        digest = hashlib.sha256(struct.pack("<6Q", *[a & _WORD for a in address])).digest()
        state, step = int.from_bytes(digest[:16], "little"), int.from_bytes(digest[16:], "little") | 1
        self._generator.state = {
            "bit_generator": "PCG64DXSM", "state": {"state": state, "inc": step}, "has_uint32": 0, "uinteger": 0,
        }  # fmt: skip
        return self._generator.advance(place)


_threads = _Threads()


def initial(
    seed: int,
    samples: range | Sequence[int],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the starting latents of samples, shape (len(samples), *shape); the arguments are those of `normal`."""
    return normal(seed, INITIAL, (0, 0, 0), samples, shape, dtype=dtype, device=device)


class NoiseSource(ABC):
    """Gaussian increments over intervals of a clock, for a fixed set of samples.

    Args:
        seed: Any integer; its low 64 bits count.
        samples: The indices of the samples, one per row of the batch.
        shape: The shape of one sample.
        dtype: The type of the noise.
        device: The device of the noise.

    Raises:
        InputError: There are no samples, or an index is negative.
    """

    def __init__(
        self,
        seed: int,
        samples: range | Sequence[int],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if len(samples) == 0 or min(samples) < 0:
            raise InputError(f"samples: expected at least one index, none negative, got {samples}")
        self.seed, self.samples, self.shape = whole("seed", seed), samples, tuple(shape)
        self.dtype, self.device = floating(dtype), device_of(device)

    def begin_step(self) -> None:  # noqa: B027  # most sources remember nothing
        """Let a source that draws on demand forget what the last step has drawn."""

    def repeat_step(self) -> None:  # noqa: B027
        """Let a source that draws on demand give what a step has drawn so far once more, as the step begins anew."""

    @abstractmethod
    def increment(self, a: float, b: float) -> Tensor:
        """Return a Gaussian of variance |b - a|, shape (B, *shape); `increment(b, a)` is its negative.

        Args:
            a: The clock at one end of the interval, finite and at least 0.
            b: The clock at the other end.

        Raises:
            InputError: An end is negative or not finite.
        """

    @abstractmethod
    def unit(self, a: float, b: float) -> Tensor:
        """Return `increment(a, b)` divided by its standard deviation, shape (B, *shape).

        Raises:
            InputError: An end is negative or not finite, or the interval is shorter than the clock's resolution.
        """

    def area(self, a: float, b: float) -> Tensor:
        """Return the space-time Levy area H over the interval, shape (B, *shape); `area(b, a)` is the same.

        H = (1/h) * integral of (W - the chord of W) is a Gaussian of variance |b - a| / 12, independent of W. It is
        drawn for each interval separately, which is its exact law on one grid; the areas on a refined grid belong to
        other paths.

        Args:
            a: The clock at one end of the interval, finite and at least 0.
            b: The clock at the other end.

        Raises:
            InputError: An end is negative or not finite.
        """
        _check_clock(a, b)
        ends = struct.unpack("<QQ", struct.pack("<dd", min(a, b), max(a, b)))
        return self._normal(AREA, (*ends, 0)).mul_(math.sqrt(abs(b - a) / 12.0))

    def _normal(self, stream: int, node: tuple[int, int, int]) -> Tensor:
        """Return standard normal numbers of the batch's shape, in new memory."""
        return normal(self.seed, stream, node, self.samples, self.shape, dtype=self.dtype, device=self.device)


class Addressed(NoiseSource):
    """Noise that is a function of seed, sample and interval alone."""

    @classmethod
    def of(cls, x: Tensor, seed: int = 0, samples: range | Sequence[int] | None = None) -> Self:
        """Create a source with the shape, type and device of a batch.

        Args:
            x: The batch, shape (B, ...).
            seed: The seed.
            samples: The indices of the rows; 0 to B - 1 by default.

        Raises:
            InputError: There are no samples, or an index is negative.
        """
        rows = range(len(x)) if samples is None else samples
        return cls(seed, rows, x.shape[1:], dtype=x.dtype, device=x.device)


class White(Addressed):
    """Independent noise for every interval, addressed by the interval's two ends."""

    def unit(self, a: float, b: float) -> Tensor:
        _check_clock(a, b)
        low, high = (a, b) if a <= b else (b, a)
        ends = struct.unpack("<QQ", struct.pack("<dd", low, high))
        draw = self._normal(WHITE, (*ends, 0))
        return draw if a <= b else draw.neg_()

    def increment(self, a: float, b: float) -> Tensor:
        return self.unit(a, b).mul_(math.sqrt(abs(b - a)))


class Brownian(Addressed):
    """A Brownian motion over the clock c >= 0: increments over sub-intervals add up to that of the whole interval.

    Times that differ by less than 2^-20 of their size count as equal: the increment between them is 0. The path to the
    last queried times is cached, so that sequential queries cost few draws; the cache is bounded (about forty tensors
    of the batch's shape). The arguments are those of `NoiseSource`.
    """

    def __init__(
        self,
        seed: int,
        samples: range | Sequence[int],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(seed, samples, shape, dtype=dtype, device=device)
        self._binades: dict[int, Tensor] = {}
        self._descents: dict[int, list[tuple[int, int, Tensor | float, Tensor | float]]] = {}

    def increment(self, a: float, b: float) -> Tensor:
        _check_clock(a, b)
        (ka, ma), (kb, mb) = _locate(a), _locate(b)
        at_a = self._within(ka, ma)  # before b: the path to a is still cached if the last query ended at a
        at_b = self._within(kb, mb)
        return self._between(ka, at_a, kb, at_b) if a <= b else self._between(kb, at_b, ka, at_a).neg_()

    def unit(self, a: float, b: float) -> Tensor:
        _check_clock(a, b)
        variance = abs(_rounded(b) - _rounded(a))
        if variance == 0.0:
            raise InputError(
                f"noise: got the interval [{a}, {b}], which is shorter than the clock's resolution (2^-20)"
            )
        return self.increment(a, b).mul_(1.0 / math.sqrt(variance))

    def _between(self, low: int, at_low: Tensor | float, high: int, at_high: Tensor | float) -> Tensor:
        """Return the increment, in new memory, between two points, each given by its binade and `_within` of it."""
        if low < high:
            total = self._whole(low) - at_low
            for k in range(low + 1, high):
                total += self._whole(k)
            return total.add_(at_high)
        if isinstance(at_high, Tensor):
            return at_high - at_low
        return torch.zeros(len(self.samples), *self.shape, dtype=self.dtype, device=self.device)

    def _whole(self, k: int) -> Tensor:
        """Return the increment over binade k, of variance equal to the binade's length."""
        if k not in self._binades:
            if len(self._binades) > 4:
                self._binades.pop(next(iter(self._binades)))
            self._binades[k] = self._normal(BROWNIAN, (k, 0, 0)).mul_(math.sqrt(_length(k)))
        return self._binades[k]

    def _within(self, k: int, m: int) -> Tensor | float:
        """Return W at cell m of binade k minus W at the start of the binade."""
        if m == 0:
            return 0.0
        path = self._descents.get(k)
        if path is None:
            if len(self._descents) > 1:  # two binades suffice for any walk along the clock
                self._descents.pop(next(iter(self._descents)))
            path = self._descents[k] = [(0, 1 << _LEVELS, 0.0, self._whole(k))]
        while not path[-1][0] <= m <= path[-1][1]:
            path.pop()
        low, high, at_low, at_high = path[-1]
        cell = _length(k) / (1 << _LEVELS)
        while m not in (low, high):
            middle = (low + high) // 2
            spread = math.sqrt((high - low) * cell / 4.0)
            at_middle = self._normal(BROWNIAN, (k, middle, 1)).mul_(spread).add_(at_high, alpha=0.5)
            if low:  # else at_low is 0
                at_middle.add_(at_low, alpha=0.5)
            if m <= middle:
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle
            path.append((low, high, at_low, at_high))
        return at_low if m == low else at_high


def _check_clock(a: float, b: float) -> None:
    for value in (a, b):
        if not 0.0 <= value < math.inf:
            raise InputError(f"noise: got the clock value {value}, expected a finite number >= 0")


def _length(k: int) -> float:
    return 2.0 ** (_FLOOR if k < _FLOOR else k)


def _locate(c: float) -> tuple[int, int]:
    """Return the binade of c and the nearest start of a cell in it. Binade _FLOOR - 1 is [0, 2^_FLOOR]."""
    if c < 2.0**_FLOOR:
        return _FLOOR - 1, round(c / 2.0**_FLOOR * (1 << _LEVELS))
    mantissa, exponent = math.frexp(c)  # c = mantissa 2^exponent, mantissa in [1/2, 1)
    return exponent - 1, round((2.0 * mantissa - 1.0) * (1 << _LEVELS))


def _rounded(c: float) -> float:
    """Return the lattice point to which c is rounded."""
    k, m = _locate(c)
    start = 0.0 if k < _FLOOR else 2.0**k
    return start + _length(k) * m / (1 << _LEVELS)


SOURCES: dict[str, type[Addressed]] = {"brownian": Brownian, "white": White}
"""The noise sources by name."""
