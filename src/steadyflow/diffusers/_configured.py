"""How a scheduler is made from another scheduler's config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import InputError
from . import _configs
from ._identify import OWN_SIGNATURES, acted_on, check_known, class_of
from ._planner import Planner
from ._sources import FIELDS, OURS, SOURCES, Kind


class Configured(SchedulerMixin, ConfigMixin):
    """A scheduler that takes the configs of diffusers' for the same kind of models."""

    kind: Kind = "table"
    """Whether the path is a table of betas or that of flow models."""
    _planner: ClassVar[str]
    """The class of diffusers that places the steps where no other is named."""

    @property
    def _settings(self) -> Any:
        """The config, with the arguments of `__init__` as attributes."""
        return self.config

    def _followed(self, **own: Any) -> tuple[Planner, dict[str, Any]]:
        """The planner, and the fields that it was made from.

        Args:
            **own: The arguments of `__init__` that are fields of configs.
        """
        self._config_read = self._config_now()
        follows = dict(self._settings.follows or {})
        name = follows.pop("_class_name", self._planner)
        if name not in SOURCES or SOURCES[name].kind not in (self.kind, "either"):
            raise InputError(f"follows: got {name!r}, expected a scheduler of diffusers for models of this kind")
        check_known(name, follows)
        fields = {**follows, **own}
        _configs.refuse_other_paths(fields)
        return Planner(name, fields, self.kind), fields

    def _config_now(self) -> dict[str, Any]:
        """The fields of the config; pipelines replace it, or set attributes of it, which its items do not show."""
        return {k: v for k, v in vars(self._internal_dict).items() if not k.startswith("_")}

    def read_again(self) -> None:
        """Read the config again if it was changed since, as the constructors of pipelines do.

        Raises:
            InputError: The changed field cannot be honoured.
        """
        now, read = self._config_now(), self._config_read
        changed = {k: v for k, v in now.items() if k not in read or _differ(v, read[k])}
        if not changed:
            return
        name = (read["follows"] or {}).get("_class_name", self._planner)
        changes = acted_on(changed, name)
        if changes:
            _configs.check_changes({k: v for k, v in changes.items() if k in FIELDS}, self.kind, name)
            settings, hidden = self._translated(OURS[0], read, changes)
            self._become(type(self)(**settings), next(iter(changes)))
            now |= {**settings, **hidden}
            own = {k: v for k, v in self._internal_dict.items() if k.startswith("_")}
            own["_use_default_values"] = [k for k in own.get("_use_default_values", ()) if k not in changes]
            self._internal_dict = FrozenDict({**now, **own})
        self._config_read = now

    def _become(self, made: Any, field: str) -> None:
        """Take the place of a scheduler with another config.

        Args:
            made: The scheduler, new.
            field: A field that has changed.
        """
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            OWN_SIGNATURES[cls.__name__] = frozenset(cls._get_init_keys(cls) - {"self"})

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Create a scheduler from another scheduler's config.

        Every field that its class acts on is honoured or refused; those of its method are replaced by `solver`. A
        field's default is that of the class that wrote the config.

        Args:
            config: The config of any scheduler for the same kind of models.
            return_unused_kwargs: Whether to return the unused keyword arguments as well, as in diffusers.
            **kwargs: Fields to change, such as `solver`.

        Returns:
            The scheduler; with `return_unused_kwargs`, a tuple of it and a dict.

        Raises:
            InputError: The config is that of a scheduler for another kind of models, or a field cannot be honoured.
        """
        if not isinstance(config, Mapping):
            return super().from_config(cast(Any, config), return_unused_kwargs=return_unused_kwargs, **kwargs)
        own = cls._get_init_keys(cls)
        name = class_of(config)
        if name in OURS:
            fields = {k: v for k, v in config.items() if not k.startswith("_")}
        else:
            fields = _configs.settle_spacing(_configs.complete(config, name), config, name, kwargs)
        kind = _configs.kind_of({**fields, **{k: v for k, v in kwargs.items() if k in FIELDS}}, name)
        if kind != cls.kind:
            wanted = "SteadyFlowScheduler" if kind == "flow" else "SteadyScheduler"
            of = "of a flow model" if kind == "flow" else "over a table of betas"
            raise InputError(f"from_config: the config of {name or 'no class'} is that of a model {of}: use {wanted}")
        unused = {k: v for k, v in kwargs.items() if k not in own and k not in FIELDS}
        if unused and not return_unused_kwargs:
            raise InputError(f"from_config: {next(iter(unused))} is no field of {cls.__name__}")
        given = {k: v for k, v in kwargs.items() if k not in unused}
        _configs.check_changes(given, kind, name)
        settings, hidden = cls._translated(name, fields, given)
        for key in ("solver", "solver_options", "grid", "seed"):  # kept by other classes, which do not know them
            if key in config and key not in config.get("_use_default_values", ()):
                settings.setdefault(key, config[key])
        made = cls(**settings)
        kept = {k: v for k, v in config.items() if k not in own and k not in hidden and not k.startswith("_")}
        hidden |= {k: v for k, v in kept.items() if not (isinstance(v, float) and math.isinf(v))}  # no JSON; a default
        kept = {k: config[k] for k in ("_diffusers_version",) if k in config}
        made.register_to_config(**hidden, **kept, _class_name=cls.__name__)
        made._config_read = made._config_now()
        return (made, unused) if return_unused_kwargs else made

    @classmethod
    def _translated(
        cls, name: str | None, fields: dict[str, Any], changes: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of `__init__` for a config's fields, and the fields that only its own class has arguments for."""
        own = cls._get_init_keys(cls)
        if name in OURS:
            settings = {k: v for k, v in fields.items() if k in own}
            follows = {k: fields.get(k, v) for k, v in (settings.get("follows") or {}).items()}
        else:
            settings = {k: v for k, v in fields.items() if k in own and v is not None}
            follows = {k: v for k, v in fields.items() if k not in own and FIELDS.get(k) != "size"}
            followed = name if name in SOURCES else cls._planner
            follows = {**_configs.asked_for(followed, follows), "_class_name": followed}
        settings |= {k: v for k, v in changes.items() if k in own}
        follows = dict(changes["follows"] or {}) if "follows" in changes else follows
        follows |= {k: v for k, v in changes.items() if k not in own}
        hidden = {k: v for k, v in follows.items() if k != "_class_name"}
        return {**settings, "follows": follows or None}, hidden


def _differ(a: Any, b: Any) -> bool:
    """Whether two values of a field differ, which may be arrays."""
    return a is not b and not np.array_equal(a, b)
