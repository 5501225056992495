"""The base class of operators; matrices and functions as operators; the check of what an operator returns.

The adjoint, or transpose, of a linear operator is A^T y = grad_x <A x, y>, because A x is linear in x.
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from .._internal.autograd import check_derivatives
from .._internal.given import whole
from .._internal.tensors import dot, finite
from ..errors import InputError

DENSE_LIMIT = 4096
"""The largest number of dimensions, of a sample or of a measurement, for which a dense matrix is made."""
_TOLERANCE = 1e-3
"""How far, relative to its size, A(a x + b z) may be from a A x + b A z; an operator may compute in float16."""


class Operator(ABC):
    """What is measured of samples, called as `operator(x)` for x of shape (B, ...).

    A subclass defines `__call__`; if it is linear, the adjoint and the matrix follow from it.
    """

    linear: ClassVar[bool] = True
    """Whether A(a x + b z) = a A x + b A z. The claim is checked where it is relied on."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Measure samples.

        Args:
            x: The samples, shape (B, ...).

        Returns:
            What is measured without noise, shape (B, ...).

        Raises:
            InputError: The samples have a shape that the operator does not take.
        """

    def sample_shape(self, measured: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape of a sample whose measurement has this shape, or None if that cannot be told."""
        return None

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Multiply measurements by the adjoint A^T.

        Args:
            y: Measurements, shape (B, ...).
            shape: The shape of one sample, if the operator does not know it.

        Returns:
            A^T y, shape (B, *shape).

        Raises:
            InputError: The operator is not linear, y does not fit, or the shape is not known.
        """
        if not self.linear:
            raise InputError(f"operator: {self!r} is not linear, and has no transpose")
        found = self.sample_shape(tuple(y.shape[1:])) if shape is None else tuple(shape)
        if found is None:
            raise InputError("shape: the operator does not know the shape of a sample; give transpose(y, shape)")
        check_derivatives()
        with torch.enable_grad():
            x = y.new_zeros(len(y), *found).requires_grad_()
            seen = self(x)
            if seen.shape != y.shape:
                raise InputError(
                    f"y: got shape {tuple(y.shape)}, but the operator makes {tuple(seen.shape)} of samples {found}"
                )
            (result,) = torch.autograd.grad(seen, x, y)
        return result

    def matrix(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Write the operator as a dense matrix.

        Args:
            shape: The shape of one sample, which has n numbers.
            dtype: The type of the matrix.
            device: The device of the matrix.

        Returns:
            The matrix, shape (m, n), for flattened samples and measurements.

        Raises:
            InputError: The operator is not linear, or n or m is larger than `DENSE_LIMIT`.
        """
        if not self.linear:
            raise InputError(f"operator: {self!r} is not linear, and has no matrix")
        n = math.prod(shape)
        if n > DENSE_LIMIT:
            raise InputError(f"shape: samples of {n} dimensions; a dense matrix is made up to {DENSE_LIMIT}")
        units = torch.eye(n, dtype=dtype, device=device).view(n, *shape)
        columns: list[Tensor] = []
        with torch.no_grad():
            for k in range(0, n, 256):
                seen = self(units[k : k + 256]).flatten(1)
                if seen.shape[1] > DENSE_LIMIT:
                    raise InputError(
                        f"shape: measurements of {seen.shape[1]} dimensions; a dense matrix is made up to {DENSE_LIMIT}"
                    )
                columns.append(seen)
        return torch.cat(columns).T.contiguous()


@dataclass(frozen=True, eq=False)
class Matrix(Operator):
    """M x for samples that are vectors, shape (B, n) -> (B, m).

    Args:
        entries: M, shape (m, n).

    Raises:
        InputError: M is not a matrix of finite numbers.
    """

    entries: Tensor

    def __post_init__(self):
        entries = numbers("entries", self.entries)
        entries = entries if entries.is_floating_point() else entries.double()
        if entries.ndim != 2 or 0 in entries.shape:
            raise InputError(f"entries: got shape {tuple(entries.shape)}, expected a matrix (m, n)")
        if not finite(entries):
            raise InputError("entries: expected finite numbers, got NaN or infinity")
        object.__setattr__(self, "entries", entries)

    def __call__(self, x: Tensor) -> Tensor:
        check_floats(x)
        if x.ndim != 2 or x.shape[1] != self.entries.shape[1]:
            raise InputError(f"x: got shape {tuple(x.shape)}, expected (B, {self.entries.shape[1]})")
        return x @ self.entries.to(x).T

    def sample_shape(self, measured: tuple[int, ...]) -> tuple[int, ...] | None:
        return (self.entries.shape[1],)


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """Any linear map, given as a function whose adjoint is found by automatic differentiation.

    It is checked to be linear, on a random pair of samples, when it is first used in each precision and on each device.

    Args:
        function: Takes samples (B, *shape) to measurements (B, ...), each from its own sample.
        shape: The shape of one sample.

    Raises:
        InputError: The function is not linear, does not return such a batch, or does not depend on x.
    """

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    _checked: set[tuple[Any, ...]] = field(default_factory=set[tuple[Any, ...]], init=False, repr=False)

    def __post_init__(self):
        if not callable(self.function):
            raise InputError(f"function: got {self.function!r}, expected a function of samples (B, ...)")
        if not isinstance(self.shape, Sequence):
            raise InputError(f"shape: got {self.shape!r}, expected the shape of one sample, such as (1, 8, 8)")
        object.__setattr__(self, "shape", tuple(whole("shape", size, 1) for size in self.shape))

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"x: got samples of shape {tuple(x.shape[1:])}, expected {self.shape}")
        where = (x.dtype, x.device)
        if where not in self._checked:
            self._checked.add(where)  # before the check, which calls this
            try:
                check(self, self.shape, dtype=x.dtype, device=x.device)
            except Exception:
                self._checked.discard(where)
                raise
        return self.function(x)

    def sample_shape(self, measured: tuple[int, ...]) -> tuple[int, ...] | None:
        return self.shape


@dataclass(frozen=True, eq=False)
class Nonlinear(Operator):
    """A function of samples that is not known to be linear. A plain function is taken as one of these.

    Args:
        function: Takes samples (B, ...) to measurements (B, ...), each from its own sample.
    """

    function: Callable[[Tensor], Tensor]
    linear: ClassVar[bool] = False

    def __post_init__(self):
        if not callable(self.function):
            raise InputError(f"function: got {self.function!r}, expected a function of samples (B, ...)")

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


def numbers(name: str, given: object) -> Tensor:
    """Return real numbers as a tensor.

    Args:
        name: The argument, for the message.
        given: What was given.

    Raises:
        InputError: It is none.
    """
    try:
        found = torch.as_tensor(given if isinstance(given, Tensor) else np.asarray(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: got {given!r}, expected a tensor of numbers") from error
    if found.is_complex():
        raise InputError(f"{name}: got {found.dtype}, expected real numbers")
    return found


def check_floats(x: Tensor) -> None:
    """Raise `InputError` unless samples are floats, as others would round what is measured of them."""
    if not x.is_floating_point():
        raise InputError(f"x: got {x.dtype}, expected samples of floats")


def of(given: object) -> Operator:
    """Return what was given as an operator: an operator as it is, a matrix (m, n) as `Matrix`, else `Nonlinear`.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(given, Operator):
        return given
    if isinstance(given, Tensor | np.ndarray):
        return Matrix(torch.as_tensor(given))
    if callable(given):
        return Nonlinear(cast("Callable[[Tensor], Tensor]", given))
    raise InputError(f"operator: got {given!r}, expected one of steadyflow.operators, a matrix or a function of x")


def check(
    operator: Operator,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[int, ...]:
    """Check an operator on a random pair of samples: what it returns, that this depends on them, and if it is linear.

    Args:
        operator: The operator.
        shape: The shape of one sample.
        dtype: The type of the samples.
        device: The device of the samples.

    Returns:
        The shape of one measurement.

    Raises:
        InputError: It returns no batch of finite floats, does not depend on x, lets a sample's measurement depend on
            the others, or calls itself linear and is not.
    """
    check_derivatives()
    random = torch.Generator().manual_seed(0)
    x, z = (torch.randn(2, *shape, generator=random).to(dtype=dtype, device=device) for _ in range(2))
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        seen = measured(operator, leaf)
        gradient = None
        if seen.requires_grad:
            (gradient,) = torch.autograd.grad(seen.square().sum() + seen.sum(), leaf, allow_unused=True)
    if gradient is None or not bool((gradient != 0).any()):
        raise InputError(
            "operator: what it returns does not depend on x, or not in a way that can be differentiated; expected a "
            "function made of torch's differentiable operations"
        )
    if not finite(seen.detach()):
        raise InputError("operator: returned NaN or infinity for random samples of unit variance")
    alone = measured(operator, x[:1])
    if alone.shape[1:] != seen.shape[1:] or not torch.allclose(alone, seen[:1], rtol=1e-2, atol=1e-2):
        raise InputError(
            "operator: what it returns for a sample depends on the others of its batch; expected a measurement of each "
            "sample alone"
        )
    if operator.linear:
        with torch.no_grad():
            a, b = 0.7, -1.9
            left, right = measured(operator, a * x + b * z), a * seen + b * measured(operator, z)
            gap, size = dot(left - right, left - right).sum(), dot(left, left).sum() + dot(right, right).sum()
        if float(gap) > _TOLERANCE**2 * float(size):
            raise InputError(
                f"operator: {type(operator).__name__} is not linear: A(a x + b z) differs from a A x + b A z by "
                f"{math.sqrt(float(gap) / float(size)):.1e} of its size; give a plain function instead"
            )
    return tuple(seen.shape[1:])


def measured(operator: Operator, x: Tensor) -> Tensor:
    """Measure samples, and check what the operator returns.

    Args:
        operator: The operator.
        x: The samples, shape (B, ...).

    Raises:
        InputError: What it returns is not a tensor of floats with one measurement for each sample.
    """
    seen = cast(object, operator(x))
    if not isinstance(seen, Tensor) or not seen.is_floating_point():
        what = str(seen.dtype) if isinstance(seen, Tensor) else type(seen).__name__
        raise InputError(f"operator: returned {what}, expected a tensor of floats")
    if seen.ndim < 2 or len(seen) != len(x):
        raise InputError(
            f"operator: returned shape {tuple(seen.shape)} for {len(x)} samples, expected ({len(x)}, ...), one "
            "measurement for each"
        )
    return seen
