"""Names with options in one text, such as "karras:rho=5" or "uni-edit:omega=3,measure=signed"."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import InputError

_TRUTH = {"true": True, "false": False}
_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: _TRUTH[text.lower()], "true or false"),
    NoneType: (lambda text: {"none": None}[text.lower()], "none"),
}


def name_of(text: object) -> object:
    """What stands before the colon of a text; anything else passes through."""
    return text.partition(":")[0].strip() if isinstance(text, str) else text


def options_of(what: str, text: str, example: str) -> dict[str, str]:
    """What stands behind the colon: the options, each as it is written.

    Args:
        what: What the text names, for messages.
        text: A name, and after a colon the options, separated by commas.
        example: Such a text, for messages.

    Raises:
        InputError: The text is malformed, or an option is given twice.
    """
    _, colon, rest = text.partition(":")
    found: dict[str, str] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier():
            form = f"expected a name with options as NAME:OPTION=VALUE,OPTION=VALUE, such as {example!r}"
            raise InputError(f"{what}: got {text!r}, {form}")
        if key in found:
            raise InputError(f"{what} {text!r}: {key} is given twice")
        found[key] = value
    return found


def value_of(text: str, kind: Any) -> Any:
    """A value of a type, from its text: true or false, numbers, words, and tuples with a slash between their entries.

    Args:
        text: What is written.
        kind: The type; of a union, the first that fits.

    Raises:
        ValueError: It is not written so; the message says what is expected.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return next((value for value in arguments if str(value) == text), text)  # a wrong one is refused by its owner
    if origin in (Union, UnionType):
        refusals: list[str] = []
        for one in sorted(arguments, key=lambda one: one is str):  # as every text is one
            try:
                return value_of(text, one)
            except ValueError as error:
                refusals.append(str(error).removeprefix("expected "))
        raise ValueError(f"expected {' or '.join(refusals)}")
    if origin is tuple:
        kinds, parts = arguments, text.split("/")
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(parts)
        if len(kinds) != len(parts):
            raise ValueError(f"expected {len(kinds)} values with a slash between them")
        return tuple(value_of(part.strip(), one) for part, one in zip(parts, kinds, strict=True))
    if kind not in _READERS:
        raise ValueError(f"expected {kind}, which has no text; give it in Python")
    read, expected = _READERS[kind]
    try:
        return read(text)
    except (ValueError, KeyError):
        raise ValueError(f"expected {expected}") from None
