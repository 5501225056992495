"""All that decides a model's answers: its numbers, its configuration, and the code of what a user wrote.

Code is that of functions and classes that lie in no installed package: their instructions, what they enclose, and what
they refer to by name. Of installed packages the versions stand for the code. What is none of these, such as a session
of another runtime, cannot be told from another; it is named.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import sys
import sysconfig
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ._internal import files
from .denoisers import Denoiser
from .denoisers.fingerprints import numbers_of

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, Enum, torch.dtype, torch.device, torch.Size,
          np.dtype, np.generic, Path)  # fmt: skip
_NOTHING = (logging.Logger, types.MemberDescriptorType, types.GetSetDescriptorType, type(threading.Lock()))
"""What no answer depends on."""
_OWN = ("steadyflow", "steadyflow_lab")
_DEPTH = 60


@dataclass(frozen=True)
class Identity:
    """What stands for a model."""

    parts: dict[str, str]
    """Hashes by what they are of: "numbers", "configuration" and "code"."""
    unknown: tuple[str, ...]
    """What nothing can stand for, by name and class."""
    packages: tuple[str, ...]
    """The installed packages whose code computes the answers."""


def identify(model: Denoiser) -> Identity:
    """Find what stands for a model, of which all numbers are hashed.

    Args:
        model: The model.
    """
    walk = _Walk()
    walk.numbers |= numbers_of(model)
    about: tuple[Any, ...] = (model.schedule.spec(), model.prediction, model.shape)
    if model.clip is not None:
        about = (*about, dataclasses.asdict(model.clip))
    if hasattr(model, "described"):
        about = (*about, model.described())  # pyright: ignore[reportAttributeAccessIssue]
    pipe = getattr(model, "pipe", None)
    if pipe is None and not walk.numbers.keys() & {"means"}:
        walk.visit("net", model.net)
    for name, part in cast("Mapping[str, Any]", {} if pipe is None else pipe.components).items():
        walk.component(name, part)
    walk.visit("model", type(model))
    walk.visit("schedule", type(model.schedule))
    parts = {"numbers": files.digest("", walk.numbers), "configuration": _hash([repr(about), *sorted(walk.texts)])}
    if walk.code:
        parts["code"] = _hash(sorted(walk.code))
    return Identity(parts, tuple(sorted(walk.unknown)), tuple(sorted(walk.packages)))


def _hash(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _Walk:
    """What has been found of a model's parts so far."""

    def __init__(self):
        self.numbers: dict[str, Tensor] = {}
        self.texts: list[str] = []
        self.code: list[str] = []
        self.unknown: set[str] = set()
        self.packages: set[str] = set()
        self._seen: dict[int, Any] = {}

    def component(self, name: str, part: Any) -> None:
        """A component of a pipeline, whose weights have been found already."""
        self._package(type(part).__module__)
        config = getattr(part, "config", None)
        if isinstance(config, Mapping):
            kept = {key: value for key, value in cast("Mapping[str, Any]", config).items() if not key.startswith("_")}
            self.texts.append(f"{name} {sorted(kept.items(), key=str)!r}")
        elif hasattr(config, "to_json_string"):
            self.texts.append(f"{name} {config.to_json_string()}")  # pyright: ignore[reportOptionalMemberAccess]
        if hasattr(part, "get_vocab"):
            self.texts.append(f"{name} {sorted(part.get_vocab().items())!r}")

    def visit(self, name: str, value: Any, depth: int = 0) -> None:
        """Look at a value that a model's answers may depend on."""
        if isinstance(value, _PLAIN) or type(value).__module__ in ("typing", "types"):
            self.texts.append(f"{name} {value!r}")
            return
        if isinstance(value, _NOTHING):
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value  # kept, so that its address is not given to another
        if depth > _DEPTH:
            self.unknown.add(f"{name} (nested too deeply)")
            return
        for kinds, look in _LOOKS:
            if isinstance(value, kinds):
                getattr(self, f"_{look}")(name, value, depth + 1)
                return
        self._object(name, value, depth + 1)

    def _tensor(self, name: str, value: Any, depth: int) -> None:
        self.numbers.setdefault(name, torch.as_tensor(value) if not isinstance(value, Tensor) else value)

    def _array(self, name: str, value: Any, depth: int) -> None:
        if value.dtype.hasobject:
            self.visit(name, value.tolist(), depth)
        else:
            self.texts.append(f"{name} {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}")

    def _module(self, name: str, value: nn.Module, depth: int) -> None:
        for key, part in [*value.named_parameters(), *value.named_buffers()]:
            self.numbers.setdefault(f"{name}.{key}".replace("._orig_mod.", "."), part)
        if isinstance(value, torch.jit.ScriptModule):
            self.code.append(str(getattr(value, "code", "")))
        for key, module in value.named_modules():
            self.visit(f"{name}.{key}", type(module), depth)
            own = _is_own_code(type(module).__module__)
            for word, given in vars(module).items():
                hooks = word in ("_forward_hooks", "_forward_pre_hooks") and given
                if hooks or (not word.startswith("_") and (own or isinstance(given, (*_PLAIN, tuple)))):
                    self.visit(f"{name}.{key}.{word}", given, depth)

    def _function(self, name: str, value: types.FunctionType, depth: int) -> None:
        for k, cell in enumerate(value.__closure__ or ()):
            try:
                self.visit(f"{name}.{value.__code__.co_freevars[k]}", cell.cell_contents, depth)
            except ValueError:
                continue  # an empty cell
        for k, default in enumerate([*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]):
            self.visit(f"{name}.default{k}", default, depth)
        if not _is_own_code(value.__module__):
            self._package(value.__module__)
            return
        names = list[str]()
        self.code.append(_instructions(value.__code__, names))
        for word in dict.fromkeys(names):
            if word not in value.__globals__:
                continue
            given = value.__globals__[word]
            if not isinstance(given, types.ModuleType):
                self.visit(word, given, depth)
            elif not _is_own_code(given.__name__):
                self._package(given.__name__)
            else:
                for inner in dict.fromkeys(names):
                    if inner in vars(given):
                        self.visit(f"{word}.{inner}", vars(given)[inner], depth)

    def _method(self, name: str, value: types.MethodType, depth: int) -> None:
        self.visit(name, value.__func__, depth)
        self.visit(f"{name}.self", value.__self__, depth)

    def _partial(self, name: str, value: functools.partial[Any], depth: int) -> None:
        self.visit(name, value.func, depth)
        self.visit(f"{name}.args", value.args, depth)
        self.visit(f"{name}.keywords", value.keywords, depth)

    def _class(self, name: str, value: type, depth: int) -> None:
        if not _is_own_code(value.__module__):
            self._package(value.__module__)
            return
        for word, given in vars(value).items():
            if word != "_abc_impl" and (callable(given) or not word.startswith("__")):
                self.visit(f"{value.__qualname__}.{word}", given, depth)
        for base in value.__bases__:
            self.visit(base.__qualname__, base, depth)

    def _inside(self, name: str, value: Any, depth: int) -> None:
        """What decorators such as classmethod and property enclose."""
        inner = (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", None),)
        for one in inner:
            self.visit(name, one, depth)

    def _builtin(self, name: str, value: Any, depth: int) -> None:
        self.texts.append(f"{name} {getattr(value, '__qualname__', value.__name__)}")
        inner = getattr(value, "__self__", None)
        if inner is not None and not isinstance(inner, types.ModuleType):
            self.visit(f"{name}.self", inner, depth)
        self._package(getattr(value, "__module__", None) or "")

    def _mapping(self, name: str, value: Mapping[Any, Any], depth: int) -> None:
        for key, given in value.items():
            self.visit(f"{name}[{key!r}]" if isinstance(key, _PLAIN) else name, given, depth)

    def _sequence(self, name: str, value: Any, depth: int) -> None:
        entries = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        self.texts.append(f"{name} {type(value).__name__} of {len(value)}")
        for k, given in enumerate(entries):
            self.visit(f"{name}[{k}]", given, depth)

    def _object(self, name: str, value: Any, depth: int) -> None:
        """An object of a class that is none of the others: by its attributes, where a user or we wrote the class."""
        kind = type(value)
        inner = getattr(value, "__wrapped__", None)  # of functools.cache and its like
        if inner is not None:
            self.visit(name, inner, depth)
            return
        described = getattr(value, "described", None)
        if callable(described):
            self.texts.append(f"{name} {described()!r}")
        elif dataclasses.is_dataclass(value) or _is_own_code(kind.__module__) or kind.__module__.split(".")[0] in _OWN:
            found = {word: getattr(value, word) for word in _slots(kind) if hasattr(value, word)}
            for word, given in (found | getattr(value, "__dict__", {})).items():
                self.visit(f"{name}.{word}", given, depth)
        else:
            self.unknown.add(f"{name} ({kind.__module__}.{kind.__qualname__})")
        self.visit(name, kind, depth)

    def _package(self, module: str) -> None:
        top = module.partition(".")[0]
        if top and top not in sys.stdlib_module_names and top not in (*_OWN, "__main__") and not _is_own_code(module):
            self.packages.add(top)


def _slots(kind: type) -> list[str]:
    found = [getattr(one, "__slots__", ()) for one in kind.__mro__]
    return [word for slots in found for word in ((slots,) if isinstance(slots, str) else slots)]


@functools.lru_cache(maxsize=4096)
def _is_own_code(module: str) -> bool:
    """Whether a module is a user's: one of no installed package, which has a version, nor of Python."""
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names or top in (*_OWN, "builtins"):
        return top == "__main__"
    there = sys.modules.get(module) or sys.modules.get(top)
    file = getattr(there, "__file__", None)
    if file is None:
        return there is None or not hasattr(there, "__path__")
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in _installed())


@functools.cache
def _installed() -> tuple[Path, ...]:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")}
    return tuple(Path(place).resolve() for place in places if place)


def _instructions(code: types.CodeType, names: list[str]) -> str:
    """The instructions of a function and of those in it, as text; the names that they refer to are added to a list."""
    names += code.co_names
    inner = [
        _instructions(one, names) if isinstance(one, types.CodeType) else repr(one)
        for one in code.co_consts
        if not isinstance(one, frozenset)
    ]
    sets = [repr(sorted(one, key=repr)) for one in code.co_consts if isinstance(one, frozenset)]
    return f"{code.co_code.hex()} {code.co_names!r} {code.co_varnames!r} {[*inner, *sets]!r}"


_LOOKS: tuple[tuple[Any, str], ...] = (
    (Tensor, "tensor"),
    (np.ndarray, "array"),
    (nn.Module, "module"),
    (types.FunctionType, "function"),
    (types.MethodType, "method"),
    (functools.partial, "partial"),
    (type, "class"),
    ((staticmethod, classmethod, property, functools.cached_property), "inside"),
    ((types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType), "builtin"),
    (Mapping, "mapping"),
    ((list, tuple, set, frozenset), "sequence"),
)
"""Kinds of values, and the method of `_Walk` that looks at them."""
