"""What people pass: whole numbers, numbers, devices, types and texts of every kind, or what is refused by its name.

NumPy's integers and integer tensors without dimensions are whole numbers; truth values and floats such as 1.0 are not.
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
import numbers
import operator
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError


def whole(name: str, value: object, low: int | None = None, high: int | None = None) -> int:
    """A whole number as Python's own.

    Args:
        name: The argument, for the message.
        value: What was given.
        low: The smallest that is accepted.
        high: The largest that is accepted.

    Raises:
        InputError: It is none, or out of range.
    """
    if type(value) is int:
        found = value
    else:
        single = value.ndim == 0 and value.dtype != torch.bool if isinstance(value, Tensor) else True
        try:
            if not single or isinstance(value, bool):
                raise TypeError
            found = operator.index(cast(Any, value))
        except TypeError:
            raise InputError(f"{name}: got {value!r}, expected a whole number{_range(low, high)}") from None
    if (low is not None and found < low) or (high is not None and found > high):
        raise InputError(f"{name}: got {found}, expected a whole number{_range(low, high)}")
    return found


def number(name: str, value: object, accepted: str = "a number") -> float:
    """A real number as Python's own; it may be infinite or NaN.

    Args:
        name: The argument, for the message.
        value: What was given.
        accepted: What is accepted, for the message.

    Raises:
        InputError: It is none.
    """
    if type(value) is float:
        return value
    single = isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex() and value.dtype != torch.bool
    if not single and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise InputError(f"{name}: got {value!r}, expected {accepted}")
    try:
        return float(cast(Any, value))
    except OverflowError:
        return math.inf if cast(Any, value) > 0 else -math.inf


def device_of(value: object, name: str = "device") -> torch.device:
    """A device that is there.

    Args:
        value: What was given: a `torch.device`, or its name.
        name: The argument, for the message.

    Raises:
        InputError: It is no device, or there is none of this kind here.
    """
    accepted = "'cpu', 'cuda', 'cuda:1', 'mps' or another device of torch"
    if not isinstance(value, str | torch.device):
        raise InputError(f"{name}: got {value!r}, expected {accepted}")
    try:
        device = torch.device(value)
        if device.type not in ("cpu", "meta"):
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = str(error).partition("\n")[0].partition("Expected one of")[0][:120]
        why = f" ({why})" if why else ""
        raise InputError(f"{name}: got {str(value)!r}, expected {accepted} that is there{why}") from error
    return device


def floating(value: object, name: str = "dtype") -> torch.dtype:
    """A type of floating-point numbers.

    Args:
        value: What was given.
        name: The argument, for the message.

    Raises:
        InputError: It is none.
    """
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise InputError(f"{name}: got {value!r}, expected torch.float32, torch.float64 or another type of floats")
    return value


def text(name: str, value: str) -> str:
    """A text that can be encoded.

    Args:
        name: The argument, for the message.
        value: What was given.

    Raises:
        InputError: It holds half of a character.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: got {value!r}, whose character {error.start} is half of one (a surrogate)") from None
    return value


def _range(low: int | None, high: int | None) -> str:
    if high is not None and high == 2**63 - 1:
        return f" from {low} to 2^63 - 1"
    if high is not None:
        return f" from {low} to {high}"
    return "" if low is None else f" of at least {low}"
