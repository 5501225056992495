"""From a served pipeline's final latents to pictures, videos and sounds, and back.

The way out is the pipeline's own: its call is left to decode what it is given. The networks are not needed for it, so
in these calls they are replaced by echoes of what they once said.

The way in is the way out turned round. Between the loop and the VAE pipelines unpack their latents, and shift and scale
them by the family's statistics: every number of the VAE's input z is an affine function of one number of the state x,

    z_j = a_j x_{s(j)} + b_j

or is constant, such as the first frame of a video that is given. Which number it is, and a and b, are found by sending
the digits of the numbers' places through the pipeline (`Affine`), and checked on noise. A picture is then encoded by
the VAE, and x is read off z.
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
            if isinstance(module, torch.nn.Module) and name not in ("vae", "movq", "safety_checker"):
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
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # pipelines ask for it
        return type(self._module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        said = self._outputs[self._next % len(self._outputs)]
        self.__dict__["_next"] = self._next + 1
        return said


class Heard:
    """A VAE whose decoder is listened to; with `stop`, reaching it ends the call.

    Args:
        vae: The VAE.
        stop: Whether to leave there.
    """

    def __init__(self, vae: Any, *, stop: bool = False):
        self.__dict__.update(_vae=vae, _stop=stop, taken=None, made=None)

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # pipelines ask for it
        return type(self._vae)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._vae, name, value)

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Note what is decoded, and what becomes of it."""
        self.__dict__["taken"] = z
        if self._stop:
            raise Left
        made = self._vae.decode(z, *args, **kwargs)
        self.__dict__["made"] = made[0] if isinstance(made, tuple) else made["sample"]
        return made


def reached(server: Any, request: Any, x: Tensor) -> Tensor:
    """What the pipeline would hand its VAE for a final state.

    Args:
        server: The pipeline's server.
        request: What its call is opened with.
        x: The state, shape (1, ...).

    Raises:
        InputError: The pipeline ends without its VAE.
    """
    name = vae_name(server.pipe)
    if name is None:
        raise InputError(f"encode: {server.signature.name} has no vae")
    vae = Heard(getattr(server.pipe, name), stop=True)
    server.finished(request, x, instead={name: vae}, **pictures(server))
    if vae.taken is None:
        raise InputError(f"encode: {server.signature.name} does not decode its latents by its vae")
    return vae.taken


def vae_name(pipe: Any) -> str | None:
    """The name under which a pipeline has its VAE, None if it has none."""
    return next((name for name in ("vae", "movq") if getattr(pipe, name, None) is not None), None)


def pictures(server: Any) -> dict[str, Any]:
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
            return reached(server, request, values.reshape(1, *size).to(like)).float()

        empty = torch.zeros(count, device=like.device)
        arrived = reached(server, request, empty.reshape(1, *size))
        self.shape = tuple(arrived.shape)
        offset = arrived.float()
        slope = through(empty + 1.0) - offset
        name = server.signature.name
        self.moving = (slope != 0.0).reshape(-1)
        if int(self.moving.sum()) != count:
            raise InputError(
                f"encode: on its way to the vae, {name} turns its {count} latents into {int(self.moving.sum())} "
                "numbers, so that some come from none or from several; give latents instead of pictures"
            )
        slope = slope.reshape(-1)[self.moving]
        places, unit = torch.arange(count, device=like.device), 1
        source = torch.zeros_like(slope)
        while unit < count:
            digits = ((places // unit) % _BASE).float()
            source += ((through(digits) - offset).reshape(-1)[self.moving] / slope).round() * unit
            unit *= _BASE
        self.source, self.slope, self.offset = source.long(), slope, offset.reshape(-1)
        probe = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(like.device)
        found, size_of = through(probe).reshape(-1)[self.moving], self.slope.abs().amax()
        whole = bool((self.source.sort().values == places).all())
        if not whole or not torch.allclose(found, self._forth(probe), atol=0.05 * float(size_of), rtol=0.02):
            raise InputError(
                f"encode: the way from the latents of {name} to its vae is no permutation with a scale and a shift for "
                "each number; give latents instead of pictures"
            )

    def _forth(self, x: Tensor) -> Tensor:
        return x[..., self.source] * self.slope + self.offset[self.moving]

    def placed(self, z: Tensor) -> Tensor:
        """The numbers of z where they lie in a state, shape (n,), without scale and shift.

        Args:
            z: One number for each of the VAE's input, shape (z, ...).
        """
        flat = z.reshape(-1)[self.moving.to(z.device)]
        x = torch.empty_like(flat)
        x[self.source.to(z.device)] = flat
        return x

    def back(self, z: Tensor, samples: int) -> Tensor:
        """The states for the VAE's output.

        Args:
            z: The VAE's output, shape (B z, ...).
            samples: The number of samples B.

        Returns:
            The states, shape (B, n).
        """
        flat = (z.reshape(samples, -1) - self.offset)[:, self.moving] / self.slope
        x = torch.empty_like(flat)
        x[:, self.source] = flat
        return x
