"""Noise as pipelines draw it, from torch generators or fresh; and outputs with a learned variance of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..noise import NoiseSource


class GeneratorNoise(NoiseSource):
    """Fresh noise for every interval, drawn as diffusers' schedulers draw it.

    What a step has drawn is kept until the next one, so that a step that is begun anew, after a change of its state or
    in a copy, sees the same noise.

    Args:
        generators: One for the whole batch, or one per sample; None draws from torch's own state.
        samples: The number of samples.
        shape: The shape of one sample.
        dtype: The type of the noise that is returned; it is drawn in float32.
        device: The device of the noise that is returned; it is drawn on the generator's own.

    Raises:
        InputError: The number of generators is neither 1 nor `samples`.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator] | None,
        samples: int,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        seed = 0 if generators is None else generators[0].initial_seed()
        super().__init__(seed, range(samples), shape, dtype=dtype, device=device)
        if generators is not None and len(generators) not in (1, samples):
            raise InputError(f"generator: got {len(generators)} of them for a batch of {samples}")
        self._generators = generators
        self._drawn: list[Tensor] = []
        self._used = 0

    def begin_step(self) -> None:
        """Let go of what the last step has drawn."""
        self._drawn, self._used = [], 0

    def repeat_step(self) -> None:
        """Begin a step anew, with the noise that it has drawn so far."""
        self._used = 0

    def unit(self, a: float, b: float) -> Tensor:
        """Standard normal noise, a new draw at every call of a step."""
        if self._used == len(self._drawn):
            self._drawn.append(self._draw())
        self._used += 1
        return self._drawn[self._used - 1]

    def _draw(self) -> Tensor:
        size = (len(self.samples), *self.shape)
        if self._generators is None:
            return torch.randn(size, dtype=torch.float32, device=self.device).to(self.dtype)
        size = (size[0] // len(self._generators), *self.shape)
        drawn = [torch.randn(size, generator=g, dtype=torch.float32, device=g.device) for g in self._generators]
        return torch.cat(drawn).to(device=self.device, dtype=self.dtype)

    def increment(self, a: float, b: float) -> Tensor:
        """Gaussian noise of variance |b - a|, a new draw at every call of a step."""
        return self.unit(a, b) * math.sqrt(abs(b - a))


def without_variance(output: Tensor, sample: Tensor) -> Tensor:
    """The prediction in an output that has a learned variance in the second half of its channels.

    Args:
        output: The network's output, shape (B, c, ...) or (B, 2 c, ...).
        sample: The state, shape (B, c, ...).

    Returns:
        The first half of the channels where there are twice those of the state, else the output.
    """
    doubled = output.ndim > 1 and output.shape[1] == 2 * sample.shape[1]
    return output.chunk(2, dim=1)[0] if doubled else output
