"""JSON as its standard has it: no NaN and no Infinity, which Python would write and other readers refuse.

What people and other programs read has null in place of a number that is not finite (`plain`). What is read here again
has {"not finite": "inf"} (`dumps`), from which `loads` makes the number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast


def dumps(value: Any, **options: Any) -> str:
    """Write a value as JSON, from which `loads` reads it.

    Args:
        value: The value.
        **options: Those of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # some number is not finite; to look for it first would take longer than to write
        return json.dumps(_each(value, lambda number: {"not finite": repr(number)}), allow_nan=False, **options)


def plain(value: Any) -> Any:
    """A value with None in place of all numbers that are not finite, for readers of JSON."""
    return _each(value, lambda _: None)


def loads(text: str | bytes) -> Any:
    """Read what `dumps` wrote.

    Raises:
        ValueError: It is no JSON, or has NaN, Infinity or a number too large for a float, which JSON has not.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_number, object_hook=_object)


def _each(value: Any, change: Callable[[float], Any]) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else change(float(value))
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value).items()
        return {str(key) if isinstance(key, float) else key: _each(entry, change) for key, entry in entries}
    if isinstance(value, list | tuple):
        return [_each(entry, change) for entry in cast("list[Any]", value)]
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large a number")
    return number


def _object(found: dict[str, Any]) -> Any:
    """A number that is not finite, from the object that stands for it."""
    if len(found) == 1 and found.get("not finite") in ("nan", "inf", "-inf"):
        return float(found["not finite"])
    return found
