"""What a way of editing is: a request in, an `Edit` out."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from torch import Tensor

from .._integrate import Solution
from .._internal import named
from ..denoisers.base import Condition, Denoiser
from ..denoisers.smoothing import Smoothing
from ..errors import MALFORMED, InputError, UnknownNameError
from ..metrics.images import rmse
from ..tasks._options import Resolved
from ..tasks.inversion import Inversion

SmoothedWays = Literal["both", "inversion", "generation"]


@dataclass(frozen=True, kw_only=True)
class Edit(Solution):
    """Samples moved from one condition to another; `x` holds them, and `nfe` counts the evaluations of both ways."""

    method: str
    """The name of the way of editing."""
    distance: Tensor
    """Root mean square of the edited samples less the sources, per sample; shape (B,).

    It is NaN where only an inversion of the sources was given."""
    inversion: Inversion | None = None
    """What the edit was decoded from, where the method makes an inversion; it can be decoded again."""


@dataclass(frozen=True)
class EditRequest:
    """What `edit` was asked for, with the models of both ways ready."""

    x: Tensor
    """The sources, shape (B, ...)."""
    source: Denoiser
    """The model of the way up, under the source's condition and guidance."""
    target: Denoiser
    """The model of the way down, under the target's."""
    mask: Tensor | None
    """Where the edit may change something, weights in [0, 1] that broadcast against x."""
    options: Resolved
    inversion: Inversion | None = None
    """One that was made before, to start from."""
    prompts: tuple[Condition, Condition] = (None, None)
    """The conditions of the source and of the target as they were given, for methods that read their words."""


class EditMethod(ABC):
    """One way of editing. Subclasses are frozen dataclasses of their own options."""

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    """The options of `edit` for which the method was published with other defaults than the verb's."""
    draws_noise: ClassVar[bool] = False
    """Whether the method draws noise itself, addressed by `seed` and `index`, also with a deterministic solver."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """What the method cannot honour, of the options of `edit`, its mask, its smoothing and its inversion: why."""

    @abstractmethod
    def edit(self, request: EditRequest) -> Edit:
        """Carry out a request that has nothing in it that the method refuses."""

    def spec(self) -> dict[str, Any]:
        """A JSON-able description: the name and the options."""
        return {"name": self.name, **(dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {})}


def finished(
    request: EditRequest, method: EditMethod, found: Solution, *, nfe: int, inversion: Inversion | None = None
) -> Edit:
    """The result of an edit that a run has found.

    Args:
        request: What was asked for.
        method: The method that edited.
        found: The run that ends at the edited samples.
        nfe: The evaluations of the whole edit, those of the inversion included.
        inversion: The inversion that the edit started from, for methods that invert.

    Returns:
        The run's fields with `nfe`, the method's name, and the distance of each sample from its source.
    """
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(Solution)}
    fields |= {"nfe": nfe, "reason": found.reason or ("" if inversion is None else inversion.reason)}
    if method.draws_noise:
        fields["seed"] = request.options.seed
    distance = rmse(found.x, request.x)
    return Edit(**fields, method=method.name, distance=distance, inversion=inversion)


def apply_smoothing(
    smoothing: Smoothing | float | None, source: Denoiser, target: Denoiser, ways: SmoothedWays
) -> tuple[Denoiser, Denoiser]:
    """The models of the way up and of the way down, with their fields smoothed on those that `ways` says.

    Raises:
        InputError: `ways` is not "both", "inversion" or "generation".
    """
    if ways not in get_args(SmoothedWays):
        raise InputError(f"smooth: got {ways!r}, expected {', '.join(get_args(SmoothedWays))}")
    if smoothing is None:
        return source, target
    up = source.with_smoothing(smoothing) if ways != "generation" else source
    return up, target.with_smoothing(smoothing) if ways != "inversion" else target


Kind = TypeVar("Kind", bound=type[EditMethod])

_METHODS: dict[str, type[EditMethod]] = {}


def register(kind: Kind) -> Kind:
    """Make a way of editing available by its name, which must be free."""
    if kind.name in _METHODS:
        raise InputError(f"editing method {kind.name!r} is taken")
    _METHODS[kind.name] = kind
    return kind


def names() -> list[str]:
    """All registered names, in the order of registration."""
    return list(_METHODS)


def get(method: str | EditMethod, **options: Any) -> EditMethod:
    """The way of editing of a name with the given options; an `EditMethod` passes through.

    Args:
        method: A name. Options may follow it in text, as in "uni-edit:omega=3,measure=signed": numbers, true or false,
            words, and tuples with a slash between their entries ("rf-inversion:window=0/0.4").
        **options: Further options of the method.

    Raises:
        UnknownNameError: There is no such method.
        InputError: It does not take an option, or not this value.
    """
    if isinstance(method, EditMethod):
        if options:
            raise InputError(f"method: options {sorted(options)} are only valid with a name, not with a method object")
        return method
    name = named.name_of(method)
    if not isinstance(name, str) or name not in _METHODS:
        raise UnknownNameError("editing method", name, _METHODS)
    kind = _METHODS[name]
    written = named.options_of("method", method, "uni-edit:omega=3,measure=signed")
    accepted = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    for option in (*written, *sorted(options)):
        if option not in accepted:
            raise InputError(f"method {name!r}: no option {option!r}; it takes {', '.join(accepted) or 'none'}")
        if option in written and option in options:
            raise InputError(f"method {method!r}: {option} is given twice")
    try:
        return kind(**_read(name, kind, written), **options)
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(f"method {name!r}: {error}") from error


def _read(name: str, kind: type[EditMethod], written: Mapping[str, str]) -> dict[str, Any]:
    """Options from their texts, by the types of a method's fields."""
    types = get_type_hints(kind) if written else {}
    found: dict[str, Any] = {}
    for option, value in written.items():
        try:
            found[option] = named.value_of(value, types[option])
        except ValueError as error:
            raise InputError(f"method {name!r}: {option}: got {value!r}, {error}") from error
    return found
