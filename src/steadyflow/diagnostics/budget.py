"""The error budget of a reconstruction or of an edit: where the difference from what was wanted comes from.

With z the latent of x by the exact ODE under the inversion's model, z^ what the solver found, G the exact generation
map under the model of the way back, G_h the solver's, J the Jacobian of G half way between z and z^, and x^ what came
back,

    x^ - x = (decode(encode(x)) - x)         codec floor, where there is a codec
           + (G(z) - x)                      guidance mismatch: zero if both ways have the same model
           + J (z^ - z)                      discretisation of the inversion, amplified by the generation map
           + (G_h(z^) - G(z^))               discretisation of the regeneration
           + (x^ - x^ in float64)            rounding in the working precision
           + remainder,

to first order in z^ - z (the mean value of J removes the second order too). Derived from arXiv 2506.18290. "Exact" is
an adaptive solve in float64 whose own error is estimated by solving ten times less accurately. The terms are vectors;
what is reported of each is its part along their sum, so that the parts add up. The amplified part is divided into the
latent's error itself and what the amplification E = |J (z^ - z)| / |z^ - z| adds to it (see `amplification`).

For an exactly reversible solver, with the same model both ways, the discretisation errors cancel by construction, and
only rounding remains.

Of an edit, G belongs to the target, another condition or guidance than that of the way up, and G(z) is the edit that
an exact solver would have made. What it changes is wanted, so that the error is x^ - G(z): there is no mismatch, and
the other terms stay, J being the Jacobian of the target's map. The change |G(z) - x| is reported beside them. With a
codec the exact edit of an image is the image plus decode(G(z)) - decode(encode(x)). Exactly reversible solvers are
no exception here, as nothing cancels between different fields.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .._integrate import Solution
from .._internal.tensors import dot, rms
from ..denoisers.base import Denoiser
from ..errors import ConvergenceError, InputError
from ..grids import Grid
from ..jacobians.maps import FlowMap, Tangent
from ..metrics.images import rmse
from ..solvers.base import Solver
from ..tasks import invert
from ._exact_flow import REFERENCE, adaptive

TERMS = ("codec", "guidance", "inversion", "amplification", "regeneration", "rounding")
"""The names of the terms of a budget; one without a codec has no "codec"."""
_EXPLAINED = 0.5
"""The share of an error that the budget may leave unexplained where the linear theory is said to hold."""
_LOOSE = 1e-5
"""The largest tolerance of a reference solve, unless one is given."""
_JACOBIAN = 1e-6
"""The tolerance of the solve whose Jacobian is taken."""


class Codec(Protocol):
    """What turns images into a model's samples and back, such as a VAE."""

    def encode(self, images: Tensor) -> Tensor:
        """Encode images, shape (B, ...), into the model's samples."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the model's samples, shape (B, ...), into images."""
        ...


@dataclass(frozen=True)
class Budget:
    """The terms of a reconstruction error, per sample, as root mean squares in the image's units."""

    measured: Tensor
    """The error of the round trip, shape (B,)."""
    total: Tensor
    """The sum of the terms, shape (B,)."""
    terms: dict[str, Tensor]
    """Each term's part along the sum of all, shape (B,); negative where it works against the others."""
    uncertainty: dict[str, Tensor]
    """The uncertainty of each term due to the reference solves, shape (B,)."""
    remainder: Tensor
    """The difference between the error and the sum of the terms, shape (B,)."""
    linear: Tensor
    """Whether the linear theory holds: the Jacobian hardly changes between z and z^, and the terms explain more than
    half of the error; shape (B,)."""
    coefficient: Tensor
    """E along the inversion error, shape (B,)."""
    latent_error: Tensor
    """The root mean square of z^ - z, in the latent's units, shape (B,)."""
    times: tuple[float, ...]
    """The T times of `growth`, from the noisy end."""
    growth: Tensor
    """How a unit inversion error grows on the way down, shape (T, B)."""
    reconstruction: Tensor
    """x^, shape (B, ...)."""
    nfe: int
    """Model evaluations per sample that the budget cost; a Jacobian product counts as two."""
    exact: Tensor | None = None
    """Of an edit, what an exact solver would have made of the images, shape (B, ...)."""
    change: Tensor | None = None
    """Of an edit, the root mean square of what that changes, in the image's units, shape (B,)."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of each term in the total, as the median over the samples."""
        total = self.total.clamp_min(torch.finfo(self.total.dtype).tiny)
        return {name: (term / total).median().item() for name, term in self.terms.items()}


def in_precision(model: Denoiser, dtype: torch.dtype) -> Denoiser:
    """Make a copy of a model that computes in another precision.

    Args:
        model: The model. One whose network is not a torch module computes in the state's precision.
        dtype: The precision.

    Returns:
        A model with a network of its own; the model itself if its network is not a torch module.
    """
    if not isinstance(model.net, nn.Module):
        return model
    return dataclasses.replace(model, net=copy.deepcopy(model.net).to(dtype), dtype=dtype)


def budget(
    model: Denoiser,
    images: Tensor,
    *,
    solver: Solver[Any],
    grid: Grid,
    back: Denoiser | None = None,
    codec: Codec | None = None,
    tolerance: float | None = None,
    edit: bool = False,
) -> Budget:
    """Compute the error budget of inverting images under `model` and generating them again under `back`.

    Args:
        model: The model of the inversion.
        images: The images, shape (B, ...), float32 or float64, which is the working precision of the state.
        solver: The method of both ways.
        grid: The times of the way back, falling.
        back: The model of the way back; that of the inversion by default.
        codec: Encodes images to the model's samples and back, where the model works on latents.
        tolerance: The tolerance of the reference solves; by default a thousandth of the error found, within
            [1e-10, 1e-5].
        edit: Whether the way back is an edit: what the exact edit changes is then no error.

    Returns:
        The terms of the error of each image.

    Raises:
        InputError: The codec decodes to another shape than that of the images.
        ConvergenceError: A reference solve failed.
    """
    same = back is None
    back = model if back is None else back
    x = images if codec is None else codec.encode(images)
    inversion = invert(model, x, solver=solver, grid=grid)
    returned = inversion.decode(back).x
    shown = returned if codec is None else codec.decode(returned)
    if not isinstance(cast(object, shown), Tensor):
        raise InputError(
            f"codec: decodes to {type(shown).__name__}, expected one tensor; of samples that join several things, "
            "diagnose the states themselves, without a codec"
        )
    if shown.shape != images.shape:
        raise InputError(f"codec: decodes to shape {tuple(shown.shape)}, but the images have {tuple(images.shape)}")
    start = x.double()
    loosely, spent = _loosely(model, back, start, grid) if edit and tolerance is None else (start, 0)
    if tolerance is None:
        tolerance = min(max(1e-3 * rmse(returned.double(), loosely).median().item(), 1e-10), _LOOSE)

    exact = _Exact(in_precision(model, torch.float64), grid, tolerance)
    exact_back = exact if same else _Exact(in_precision(back, torch.float64), grid, tolerance)
    precise = invert(exact.model, start, solver=solver, grid=grid)
    precise_returned = precise.decode(exact_back.model).x
    found = precise.latent
    z, z_open, _ = exact.solve(start, rising=True)
    again, again_open, run = exact_back.solve(found)
    offset = found - z
    flow = FlowMap(exact_back.model, run.grid, REFERENCE)
    tangent, at_start = flow.carry(z + 0.5 * offset, offset), flow.carry(z, offset)
    products = 3 * 2 * run.nfe  # of two evaluations per step each
    nfe = 2 * (inversion.nfe + precise.nfe) + exact.nfe + products + spent

    cancels = same and not edit and solver.properties.inverse == "exact"
    vectors = {
        "guidance": torch.zeros_like(start),
        "inversion": tangent.change,
        "regeneration": precise_returned - again,
        "rounding": returned.double() - precise_returned,
    }
    unknown = {"inversion": rms(flow.jvp(z, z_open)), "regeneration": rms(again_open)}
    there = start
    if not same or edit:
        there, there_open, _ = exact_back.solve(z)
        nfe += 0 if same else exact_back.nfe
        if not edit:
            vectors["guidance"], unknown["guidance"] = there - start, rms(there_open)
    if cancels:
        vectors = {name: torch.zeros_like(start) for name in vectors} | {"rounding": returned.double() - start}
        unknown = {}
    if codec is not None:
        middle = there.to(x.dtype) if edit else x
        vectors = {name: _pushed(codec, middle, vector) for name, vector in vectors.items()}
        vectors["codec"] = (codec.decode(x) - images).double()
    wanted = _edited(images, x, there, codec) if edit else images.double()
    error = shown.double() - wanted
    measured = rms(error)
    names = [name for name in TERMS if name != "codec" or codec is not None]
    names = [name for name in names if name != "guidance" or not edit]
    total_vector = torch.stack(list(vectors.values())).sum(0)
    total = rms(total_vector)
    parts = {name: along(vector, total_vector) for name, vector in vectors.items()}
    coefficient = tangent.norms[-1] / tangent.norms[0].clamp_min(1e-300)
    parts["amplification"] = parts["inversion"] * (1.0 - 1.0 / coefficient.clamp_min(1e-300))
    parts["inversion"] = parts["inversion"] - parts["amplification"]
    zero = torch.zeros_like(total)
    remainder = rms(error - total_vector)
    linear = torch.ones_like(total, dtype=torch.bool) if cancels else _is_linear(tangent, at_start, total)
    return Budget(
        measured=measured,
        total=total,
        terms={name: parts.get(name, zero) for name in names},
        uncertainty={name: unknown.get(name, zero) for name in names},
        remainder=remainder,
        linear=linear & (remainder <= _EXPLAINED * measured),
        coefficient=coefficient,
        latent_error=rms(offset),
        times=run.grid.times,
        growth=tangent.norms / tangent.norms[0].clamp_min(1e-300),
        reconstruction=shown,
        nfe=nfe,
        exact=wanted if edit else None,
        change=rms(wanted - images.double()) if edit else None,
    )


def exact_edit(model: Denoiser, back: Denoiser, images: Tensor, *, grid: Grid, codec: Codec | None = None) -> Tensor:
    """Edit images as an exact solver would.

    Args:
        model: The model of the inversion.
        back: The model of the way back.
        images: The images, shape (B, ...).
        grid: The times of the way back, of which only the ends count.
        codec: Encodes images to the model's samples and back, where the model works on latents.

    Returns:
        The edited images in float64, shape (B, ...).

    Raises:
        ConvergenceError: A reference solve failed.
    """
    x = images if codec is None else codec.encode(images)
    return _edited(images, x, _loosely(model, back, x.double(), grid)[0], codec)


def _loosely(model: Denoiser, back: Denoiser, start: Tensor, grid: Grid) -> tuple[Tensor, int]:
    """The exact edit of samples to the loosest tolerance of a reference solve, and its evaluations."""
    up, down = (_Exact(in_precision(one, torch.float64), grid, _LOOSE) for one in (model, back))
    return down.end(up.end(start, rising=True)), up.nfe + down.nfe


def _edited(images: Tensor, x: Tensor, there: Tensor, codec: Codec | None) -> Tensor:
    """The exact edit of images whose samples x it brings `there`."""
    if codec is None:
        return there
    return images.double() + codec.decode(there.to(x.dtype)).double() - codec.decode(x).double()


class _Exact:
    """A model's ODE between the ends of a grid, solved adaptively in float64."""

    def __init__(self, model: Denoiser, grid: Grid, tolerance: float):
        self.model, self.grid, self.tolerance, self.nfe = model, grid, tolerance, 0

    def solve(self, x: Tensor, rising: bool = False) -> tuple[Tensor, Tensor, Solution]:
        """Solve the ODE from x.

        Returns:
            The end of the solve, its difference from a solve ten times less accurate, and a run that is accurate
            enough for Jacobians.
        """
        fine, coarse = self._run(x, rising, self.tolerance), self._run(x, rising, 10.0 * self.tolerance)
        loose = coarse if rising or 10.0 * self.tolerance >= _JACOBIAN else self._run(x, rising, _JACOBIAN)
        return fine.x, fine.x - coarse.x, loose

    def end(self, x: Tensor, rising: bool = False) -> Tensor:
        """Give the end of one solve from x."""
        return self._run(x, rising, self.tolerance).x

    def _run(self, x: Tensor, rising: bool, tolerance: float) -> Solution:
        ends = (self.grid.times[-1], self.grid.times[0]) if rising else (self.grid.times[0], self.grid.times[-1])
        try:
            run = adaptive(self.model, x, Grid(ends), tolerance)
        except ConvergenceError as error:
            raise ConvergenceError(
                f"diagnose: the reference solve failed ({error}); give a larger tolerance"
            ) from error
        self.nfe += run.nfe
        return run


def _is_linear(middle: Tangent, start: Tangent, total: Tensor) -> Tensor:
    """Whether what the mean-value Jacobian leaves out is small against the sum of the terms.

    With c the change of J (z^ - z) over half the way, a term of second order, the part left out is of third order, for
    which |c|^2 / |J (z^ - z)| stands.
    """
    change, whole = rms(middle.change - start.change), rms(middle.change)
    return change.square() <= 0.1 * total * whole


class _ContiguousGroupNorm(TorchFunctionMode):
    """Gives group normalisation contiguous tensors: its forward derivative fails on others (torch 2.13)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and func in (torch.group_norm, nn.functional.group_norm):
            primal, tangent = forward_ad.unpack_dual(args[0])
            if tangent is not None:
                args = (forward_ad.make_dual(primal.contiguous(), tangent.contiguous()), *args[1:])
        return func(*args, **(kwargs or {}))


def _pushed(codec: Codec, x: Tensor, vector: Tensor) -> Tensor:
    """A difference in the model's space as one between images, by the decoder's derivative."""
    math = sdpa_kernel(SDPBackend.MATH)  # fused attention has no derivative
    with math, _ContiguousGroupNorm(), torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(codec.decode(forward_ad.make_dual(x, vector.to(x.dtype)))).tangent
    assert tangent is not None
    return tangent.double()


def along(vector: Tensor, whole: Tensor) -> Tensor:
    """The root mean square of the vector's part along the whole."""
    return dot(vector, whole) / vector[0].numel() / rms(whole).clamp_min(1e-300)


__all__ = ["TERMS", "Budget", "Codec", "along", "budget", "exact_edit", "in_precision"]
