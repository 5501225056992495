"""From a served pipeline's final latents to pictures, videos and sounds, and back.

The way out is the pipeline's own: its call is left to decode what it is given. The networks are not needed for it, so
in these calls they are replaced by echoes of what they once said.

The way in is the way out turned round. Between the loop and the VAE pipelines unpack their latents, and shift and scale
them by the family's statistics: every number of the VAE's input z is an affine function of one number of the state x,

    z_j = a_j x_{s(j)} + b_j

Which number it is, and a and b, are found by sending the digits of the numbers' places through the pipeline (`Affine`),
and checked on noise. A picture is then encoded by the VAE, and x is read off z.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ._line import Left

_BASE = 16
"""The base of the digits that are sent through a pipeline; half precision keeps them apart."""


class Echoes:
    """What the networks of a pipeline said in one iteration.

    They are heard by hooks until the iteration's end, and can then stand in for the networks where it does not matter
    what these say.
    """

    def __init__(self):
        self.said: dict[str, list[Any]] = {}
        self._hooks: list[Any] = []
        self._thread: int | None = None

    @staticmethod
    def of(pipe: Any) -> Echoes:
        """Begin to hear the networks of a pipeline."""
        echoes = Echoes()
        for name, module in pipe.components.items():
            if isinstance(module, torch.nn.Module) and name not in ("vae", "safety_checker"):
                echoes._hooks.append(module.register_forward_hook(echoes._heard(name)))
        return echoes

    def _heard(self, name: str) -> Any:
        def hear(module: Any, args: Any, output: Any) -> None:
            if threading.get_ident() == self._thread:
                self.said.setdefault(name, []).append(output)

        return hear

    def begin(self) -> None:
        """The loop begins, in this thread."""
        self._thread = threading.get_ident()

    def end(self) -> None:
        """The first iteration is over."""
        self._thread = None
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def put_into(self, pipe: Any) -> None:
        """Replace the networks of a copy of the pipeline."""
        for name, outputs in self.said.items():
            pipe.__dict__[name] = _Echo(getattr(pipe, name), outputs)


class _Echo:
    """A module that says what it said before, and is otherwise the module."""

    def __init__(self, module: Any, outputs: list[Any]):
        self.__dict__.update(_module=module, _outputs=outputs, _next=0)

    @property
    def __class__(self) -> Any:
        return type(self._module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        said = self._outputs[self._next % len(self._outputs)]
        self.__dict__["_next"] = self._next + 1
        return said


class Reached(Left):
    """A pipeline has come to its VAE."""

    def __init__(self, z: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__()
        self.z, self.more, self.named = z, args, kwargs


class Stop:
    """A VAE that is not asked: reaching its decoder ends the call."""

    def __init__(self, vae: Any):
        self.__dict__.update(_vae=vae, reached=None)

    @property
    def __class__(self) -> Any:
        return type(self._vae)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._vae, name, value)

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Note what was to be decoded, and leave."""
        self.__dict__["reached"] = Reached(z, args, kwargs)
        raise Left


def reached(server: Any, request: Any, x: Tensor) -> Reached:
    """What the pipeline would hand its VAE for a final state.

    Args:
        server: The pipeline's server.
        request: What its call is opened with.
        x: The state, shape (1, ...).

    Raises:
        InputError: The pipeline ends without its VAE.
    """
    vae = getattr(server.pipe, "vae", None)
    if vae is None:
        raise InputError(f"encode: {server.signature.name} has no vae")
    stop = Stop(vae)
    server.finished(request, x, vae=stop, **_pictures(server))
    if stop.reached is None:
        raise InputError(f"encode: {server.signature.name} does not decode its latents by its vae")
    return stop.reached


def _pictures(server: Any) -> dict[str, Any]:
    """The argument that asks for tensors instead of latents."""
    return {"output_type": "pt"} if "output_type" in server.signature.parameters else {}


class Affine:
    """The map from a final state x to the VAE's input z, z_j = a_j x_{s(j)} + b_j, for one sample.

    Args:
        server: The pipeline's server.
        request: What its call is opened with.

    Raises:
        InputError: The pipeline's way out is no such map.
    """

    def __init__(self, server: Any, request: Any):
        size = server.sizes[0]
        count = torch.Size(size).numel()
        like = server.first[0][:1].float()

        def through(values: Tensor) -> Tensor:
            return reached(server, request, values.reshape(1, *size).to(like)).z.float()

        empty = torch.zeros(count, device=like.device)
        arrived = reached(server, request, empty.reshape(1, *size))
        self.more, self.named, self.dtype = arrived.more, arrived.named, arrived.z.dtype
        self.shape = tuple(arrived.z.shape)
        offset = arrived.z.float()
        slope = through(empty + 1.0) - offset
        name = server.signature.name
        if offset.numel() != count or bool((slope == 0.0).any()):
            raise InputError(
                f"encode: on its way to the vae, {name} turns its {count} latents into {offset.numel()} numbers that "
                "do not each depend on one of them; give latents instead of pictures"
            )
        places, unit = torch.arange(count, device=like.device), 1
        source = torch.zeros_like(offset)
        while unit < count:
            digits = ((places // unit) % _BASE).float()
            source += ((through(digits) - offset) / slope).round() * unit
            unit *= _BASE
        self.source = source.reshape(-1).long()
        self.slope, self.offset = slope.reshape(-1), offset.reshape(-1)
        probe = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(like.device)
        found, size_of = through(probe).reshape(-1), self.slope.abs().amax()
        whole = bool((self.source.sort().values == places).all())
        if not whole or not torch.allclose(found, self._forth(probe), atol=0.05 * float(size_of), rtol=0.02):
            raise InputError(
                f"encode: the way from the latents of {name} to its vae is no permutation with a scale and a shift for "
                "each number; give latents instead of pictures"
            )

    def _forth(self, x: Tensor) -> Tensor:
        return x[..., self.source] * self.slope + self.offset

    def forth(self, x: Tensor) -> Tensor:
        """The VAE's input for states.

        Args:
            x: The states, shape (B, ...).

        Returns:
            Its input, shape (B z, ...), in x's type, where z is the number of rows that it takes for a sample.
        """
        z = self._forth(x.reshape(len(x), -1))
        return z.reshape(len(x) * self.shape[0], *self.shape[1:])

    def back(self, z: Tensor, samples: int) -> Tensor:
        """The states for the VAE's output.

        Args:
            z: The VAE's output, shape (B z, ...).
            samples: The number of samples B.

        Returns:
            The states, shape (B, n).
        """
        flat = (z.reshape(samples, -1) - self.offset) / self.slope
        x = torch.empty_like(flat)
        x[:, self.source] = flat
        return x
