"""Which class of diffusers a scheduler's config belongs to, and the fields that its class has."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import diffusers
from diffusers.configuration_utils import FrozenDict

from ..errors import InputError
from ._sources import FIELDS, OURS, REFUSED, SOURCES

OWN_FIELDS = ("solver", "solver_options", "grid", "seed", "follows")
"""Fields of our own configs that diffusers' do not have."""


def class_of(config: Mapping[str, Any]) -> str | None:
    """The name of the class that a config belongs to.

    A file says it. The config of an instance does not, or says that of a class whose fields it has inherited, but its
    first fields are those of its own class.

    Raises:
        InputError: The class's configs are refused.
    """
    stored = config.get("_class_name")
    stored = stored[-1] if isinstance(stored, list | tuple) else stored
    keys = [k for k in config if not k.startswith("_")]
    name = stored
    if isinstance(config, FrozenDict) or "_use_default_values" in config:
        candidates = {**OWN_SIGNATURES, **_signatures()}
        matching = {name: len(f) for name, f in candidates.items() if f and f == set(keys[: len(f)])}
        longest = [name for name, size in matching.items() if size == max(matching.values())]
        name = stored if stored in longest or not longest else longest[0]
        others = [other for other in longest if {name, other} in _ALIKE]
        if others and stored is None:
            warnings.warn(
                f"the config may be that of {name} or of {others[0]}, which have the same fields; it is read as "
                f"{name}'s: give {{**config, '_class_name': ...}} to say which",
                stacklevel=3,
            )
    if name in SOURCES:
        strange = {k: v for k, v in config.items() if k in keys and k not in _fields_of_diffusers()}
        check_known(f"the config of {name}", strange)
    if name in REFUSED:
        raise InputError(f"scheduler: {name} cannot be followed, as {REFUSED[name]}")
    known = name is None or name in SOURCES or name in OURS
    if not known and isinstance(getattr(diffusers, str(name), None), type):
        raise InputError(
            f"scheduler: {name} is not known to steadyflow, so its config cannot be honoured; give the fields that you "
            "want as keyword arguments of a new scheduler"
        )
    return name


_ALIKE = ({"LCMScheduler", "TCDScheduler"}, {"FlowMatchHeunDiscreteScheduler", "FlowMapEulerDiscreteScheduler"})
"""Classes with the same fields that act otherwise."""
OWN_SIGNATURES: dict[str, frozenset[str]] = {}
"""The fields of the configs of our own schedulers, which enter themselves."""


@lru_cache(maxsize=1)
def _fields_of_diffusers() -> frozenset[str]:
    """All fields of all scheduler configs, which configs inherit from one another, and our own."""
    kinds = (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler"))
    fields = (inspect.signature(kind.__init__).parameters for kind in kinds if inspect.isclass(kind))
    return frozenset(OWN_FIELDS).union(*fields, *OWN_SIGNATURES.values())


@lru_cache(maxsize=1)
def _signatures() -> dict[str, frozenset[str]]:
    """The fields of each class; of classes with the same fields, the ones that are followed come first."""
    known = [name for name in (*SOURCES, *REFUSED) if isinstance(getattr(diffusers, name, None), type)]
    return {name: frozenset(parameters_of(name)) for name in known}


def check_known(whose: str, fields: Mapping[str, Any]) -> None:
    """Check that all fields are known, but for those that ask for nothing.

    Args:
        whose: What the message calls the config.
        fields: The fields.

    Raises:
        InputError: One is not.
    """
    unknown = {k: v for k, v in fields.items() if k not in FIELDS and v not in (None, False) and v != [] and v != {}}
    if unknown:
        listed = ", ".join(f"{k}={v!r}" for k, v in sorted(unknown.items()))
        raise InputError(
            f"scheduler: {whose} has fields that steadyflow does not know: {listed}; leave them out of the config if "
            "they may be ignored"
        )


@lru_cache(maxsize=64)
def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """The fields of the config of a class of diffusers; do not modify them."""
    parameters = dict(inspect.signature(getattr(diffusers, name).__init__).parameters)
    return {k: p for k, p in parameters.items() if k not in ("self", "kwargs")}


def refuse_data_scale(given: Mapping[str, Any]) -> None:
    """Refuse the scaling of EDM, which a pipeline has put into a config.

    Args:
        given: Fields of the config.

    Raises:
        InputError: It is among them.
    """
    if "sigma_data" in given:
        raise InputError(
            f"sigma_data: the pipeline (Cosmos) has set it with sigma_max={given.get('sigma_max')}: its path is "
            "x0 + sigma eps with its own scaling of the network; keep the pipeline's own scheduler"
        )


def acted_on(changes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those of the changes that a pipeline has made in our config on which the followed class would act, or we do.

    Our config shows fields that the class does not have, so that pipelines change them where they would leave its own
    alone; and options of its method, which has been replaced.

    Args:
        changes: The fields that differ, and their new values.
        name: The class whose plan is followed.

    Raises:
        InputError: A field is not known.
    """
    refuse_data_scale(changes)
    check_known(
        "the config, which was changed since it was read,", {k: v for k, v in changes.items() if k not in OWN_FIELDS}
    )
    source = SOURCES[name]
    has = {*parameters_of(name), *parameters_of(source.planner or name)} - source.unread

    def acts(field: str) -> bool:
        match FIELDS.get(field):
            case "method":
                return field == "variance_type" and field in has
            case "path" | "places":
                return field in has or field in ("set_alpha_to_one", "shift", "sigma_min", "sigma_max")
            case "estimate":
                return field not in source.unread
            case _:
                return True

    return {k: v for k, v in changes.items() if acts(k)}
