"""How a measurement pulls at the estimate of the data: x0_hat(x_t, y) - x0_hat(x_t) = (sigma^2/alpha) g.

With g = grad_x log p(y | x_t), the score of p(x_t | y) is that of p(x_t) plus g, and Tweedie's formula turns g into a
change of x0_hat. The true likelihood needs p(x0 | x_t); each method puts something in its place. J = d x0_hat / d x_t,
r = y - A(x0_hat), N = the variance of the noise:

    dps     g = zeta J^T A^T r / v,  v = max(|r|^2 / m, N)          Chung et al. 2022, 2209.14687
    pigdm   g = J^T A^T (s_t A A^T + N)^-1 r                        Song et al. 2023 (ICLR), eq. 8
            s_t = s chi^2 / (s + chi^2),  chi = sigma / alpha
    mmps    g = J^T A^T (A V A^T + N)^-1 r,  V = (sigma^2/alpha) J  Rozet et al. 2024, 2405.13712

`dps` moves the state by zeta grad |r| after every step, so that more steps guide more. Here its normalisation by |r| is
in the score: |r|^2 / m stands for the variance of r, with the declared noise as its floor, and zeta = 1 is the
likelihood of that variance. The systems are solved in units of the noise, u = N^(1/2) w: of pigdm by conjugate
gradients, of mmps by GMRES (Saad & Schultz 1986). V is a covariance, symmetric and positive, for an exact model alone.
A network's V has the errors of its Jacobian times sigma^2 / alpha, and is neither at high noise. Conjugate gradients
then diverge within a few steps, as measured on the digits; GMRES does not, as it makes the residual smallest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._internal.tensors import broadcast, dot
from ..errors import InputError
from ..operators import Operator

_ENOUGH = 200
"""Rounds after which a system without a model in it counts as solved; it is as soon as nothing is left of r."""


_qr: Callable[[Tensor], tuple[Tensor, Tensor]] = cast(Any, torch.linalg).qr
_triangular: Callable[..., Tensor] = cast(Any, torch.linalg).solve_triangular


class Point(NamedTuple):
    """The model at a state, with its graph, and what was measured."""

    x: Tensor
    """The state, of which there are derivatives, shape (B, ...)."""
    x0: Tensor
    """The estimate of the data, shape (B, ...)."""
    gain: float | Tensor
    """sigma^2 / alpha, a number or of shape (B, 1, ..., 1)."""
    ratio: float | Tensor
    """sigma / alpha, likewise."""
    operator: Operator
    seen: Tensor
    """A(x0), shape (B, *m)."""
    residual: Tensor
    """(y - A(x0)) / noise, shape (B, *m)."""
    noise: Tensor
    """The standard deviation of the noise, which broadcasts against y."""
    keep: bool
    """Whether the result has a graph of its own."""

    def pulled(self, w: Tensor) -> Tensor:
        """J^T A^T w, shape (B, ...)."""
        return _gradient(self.seen, self.x, w, self.keep)


def dps(point: Point, zeta: float) -> Tensor:
    """The change of x0_hat by diffusion posterior sampling.

    Args:
        point: The model at a state.
        zeta: The strength.
    """
    m = point.residual[0].numel()
    variance = (dot(point.residual, point.residual) / m).clamp_min(1.0)
    weight = point.residual / point.noise * broadcast(zeta / variance, point.residual)
    return point.gain * point.pulled(weight)


def pigdm(point: Point, prior_variance: float) -> Tensor:
    """The change of x0_hat by pseudo-inverse guidance.

    Args:
        point: The model at a state.
        prior_variance: s, the variance of the data.
    """
    square = point.ratio * point.ratio
    spread = prior_variance * square / (prior_variance + square)
    with torch.enable_grad():
        probe = torch.zeros_like(point.x0).requires_grad_()
        image = point.operator(probe)

    def product(v: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(image, probe, v / point.noise, retain_graph=True)
        spread_here = spread.to(v) if isinstance(spread, Tensor) else spread
        with torch.no_grad():
            return point.operator(spread_here * back) / point.noise

    def solve(b: Tensor) -> Tensor:
        with torch.no_grad():
            return conjugate_gradients(product, b, min(b[0].numel(), _ENOUGH))

    solved = cast(Tensor, _Solve.apply(point.residual, solve))  # pyright: ignore[reportUnknownMemberType]
    return point.gain * point.pulled(solved / point.noise)


def mmps(point: Point, iterations: int) -> Tensor:
    """The change of x0_hat by moment matching.

    It is V A^T w, which is a sum of the products that the iteration has made, so that none comes on top.

    Args:
        point: The model at a state.
        iterations: Rounds of GMRES, of one product with J^T each.
    """
    along = _along(point)

    def product(v: Tensor) -> tuple[Tensor, Tensor]:
        moved = point.gain * point.pulled(v / point.noise)
        return along(moved) / point.noise, moved

    return least_residual(product, point.residual, iterations)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve (1 + K) u = b for each sample alone, where K is symmetric and not negative.

    Samples that are solved stay as they are. Nothing is read from the device.

    Args:
        product: Gives K v for v of b's shape.
        b: The right side, shape (B, ...).
        iterations: How many rounds.
    """
    residual = direction = b
    solution, size = torch.zeros_like(b), dot(b, b)
    least = size * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        image = direction + product(direction)
        live = size > least
        step = broadcast(torch.where(live, size / dot(direction, image).where(live, 1.0), 0.0), b)
        solution, residual = solution + step * direction, residual - step * image
        after = dot(residual, residual)
        ratio = torch.where(live, after / size.where(live, 1.0), 0.0)
        direction, size = residual + broadcast(ratio, b) * direction, after
    return solution


def least_residual(product: Callable[[Tensor], tuple[Tensor, Tensor]], b: Tensor, iterations: int) -> Tensor:
    """Solve (1 + K) u = b for each sample alone, by GMRES, and return a linear function of u.

    Directions that lie in those before, and those of b = 0, have no part. Nothing is read from the device.

    Args:
        product: Gives K v for v of b's shape (B, ...), and the linear function at v.
        b: The right side, shape (B, ...).
        iterations: How many rounds, of one product each.
    """
    shape, right = b.shape, b.flatten(1)
    length = _lengths(right)
    there = length > 0
    basis = [right / length.where(there, 1.0)[:, None]]
    columns: list[Tensor] = []
    carried: list[Tensor] = []
    for k in range(iterations):
        image, beside = product(basis[k].view(shape))
        carried.append(beside)
        image = basis[k] + image.flatten(1)
        size = _lengths(image)
        known = torch.stack(basis, 1)  # (B, k + 1, n)
        column = torch.zeros_like(known[:, :, 0])
        for _ in range(2):  # twice is enough (Parlett 1980)
            share = torch.einsum("bkn,bn->bk", known, image)
            image, column = image - torch.einsum("bk,bkn->bn", share, known), column + share
        # a direction without a part stands for itself: its column is a unit vector, and its share comes to nothing
        column = column + (~there).to(column)[:, None] * torch.eye(k + 1, dtype=column.dtype, device=b.device)[k]
        left = _lengths(image)
        there = there & (left > 100.0 * torch.finfo(b.dtype).eps * size)
        basis.append(torch.where(there[:, None], image / left.where(there, 1.0)[:, None], 0.0))
        last = torch.where(there, left, 0.0)[:, None]
        columns.append(torch.cat([column, last, last.new_zeros(len(b), iterations - 1 - k)], 1))
    orthogonal, upper = _qr(torch.stack(columns, 2))
    aim = orthogonal[:, 0, :, None] * length[:, None, None]
    shares = _triangular(upper, aim, upper=True)[:, :, 0]
    return torch.einsum("bk,bk...->b...", shares, torch.stack(carried, 1))


def _lengths(x: Tensor) -> Tensor:
    """The Euclidean norms of rows, with a derivative of 0 where they are 0."""
    squares = x.square().sum(1)
    return squares.where(squares > 0, 1.0).sqrt() * (squares > 0)


class _Solve(torch.autograd.Function):
    """The solution of a symmetric system that depends on no state: its derivative is that of the solution itself."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return solve(b)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Solve.apply(grads[0], ctx.solve), None  # pyright: ignore[reportUnknownMemberType]


def _along(point: Point) -> Callable[[Tensor], Tensor]:
    """The product of the operator's Jacobian at x0_hat with a vector."""
    if point.operator.linear:
        return point.operator
    # twice backwards: J v is the derivative of J^T w by w, along v
    dual = torch.zeros_like(point.seen).requires_grad_()
    with torch.enable_grad():
        (back,) = torch.autograd.grad(point.seen, point.x0, dual, create_graph=True)
    return lambda v: _gradient(back, dual, v, point.keep)


def _gradient(output: Tensor, by: Tensor, w: Tensor, keep: bool) -> Tensor:
    (found,) = torch.autograd.grad(output, by, w, retain_graph=True, create_graph=keep, allow_unused=True)
    if cast(Any, found) is None:
        raise InputError("model: its estimate of the data has no derivative by the state; use one made of torch's own")
    return found
