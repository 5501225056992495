"""All that decides a model's answers: its numbers, its configuration, and the code of what a user wrote.

Code is that of functions and classes that lie in no installed package: their instructions, what they enclose and refer
to by name, and the source files of their modules with all modules of the user's that these import. Of installed
packages the versions stand for the code. What is none of these, such as a session of another runtime, cannot be told
from another; it is named. What a function reads while it is called, such as the environment or a file whose name it
makes, is not seen.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import logging
import sys
import threading
import types
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ._internal import files
from ._internal.user_code import OURS, file_of, imported, instructions, is_own_code
from .datasets import contents
from .denoisers import Denoiser
from .denoisers.fingerprints import numbers_of
from .denoisers.mixtures import MixtureDenoiser

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, Enum, torch.dtype, torch.device, torch.Size,
          np.dtype, np.generic, Path)  # fmt: skip
_NOTHING = (logging.Logger, types.MemberDescriptorType, types.GetSetDescriptorType, type(threading.Lock()))
"""What no answer depends on."""
_DEPTH = 60
_KEPT = (types.SimpleNamespace,)
_OF_MODULES = frozenset({*vars(nn.Module()), "_compiled_call_impl"} - {"training"})
_OF_CLASSES = {
    *("__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__slots__", "__dataclass_fields__"),
    *("__dataclass_params__", "__orig_bases__", "__parameters__", "__qualname__", "__abstractmethods__"),
    *("__match_args__", "__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__", "_abc_impl"),
}


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
    base = vars(model).get("base")
    if isinstance(base, Denoiser):  # a model around another, with parts of its own
        inner = identify(base)
        walk.texts += [f"base {name} {part}" for name, part in sorted(inner.parts.items())]
        walk.unknown |= set(inner.unknown)
        walk.packages |= set(inner.packages)
        walk.visit("operator", vars(model).get("operator"))
    pipe = getattr(model, "pipe", None)
    if pipe is None and not isinstance(model, MixtureDenoiser):
        walk.visit("net", model.net)
    for name, part in cast("Mapping[str, Any]", {} if pipe is None else pipe.components).items():
        walk.component(name, part)
    walk.visit("model", type(model))
    walk.visit("schedule", type(model.schedule))
    for hooks in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        walk.visit(hooks, vars(torch.nn.modules.module).get(hooks) or None)
    walk.sources()
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
        self._modules: set[str] = set()

    def sources(self) -> None:
        """The source files of the user's modules that have been met, and of those that these import."""
        waiting, done = sorted(self._modules), set[str]()
        while waiting:
            name = waiting.pop()
            if name in done or not is_own_code(name):
                continue
            done.add(name)
            file = file_of(name)
            if file is None:
                continue
            self.code.append(f"{name} {contents.digest(file)}")
            waiting += imported(file, name)

    def add(self, name: str, value: Tensor) -> None:
        """A tensor, under its name or, where another has that, under one like it."""
        while name in self.numbers:
            if self.numbers[name] is value:
                return
            name += "'"
        self.numbers[name] = value.detach().to_dense() if value.layout != torch.strided else value

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
        if isinstance(value, _PLAIN) or (type(value).__module__ in ("typing", "types") and type(value) not in _KEPT):
            self.texts.append(f"{name} {_text(value)}")
            own = getattr(value, "__dict__", None)
            if not own or isinstance(value, Enum | type):
                return
            self.visit(f"{name}.own", dict(own), depth + 1)
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

    def _tensor(self, name: str, value: Tensor, depth: int) -> None:
        self.add(name, value)
        self._own(name, value, depth)

    def _own(self, name: str, value: Any, depth: int) -> None:
        """What an object carries in attributes of its own."""
        found = getattr(value, "__dict__", None)
        if found:
            self.visit(f"{name}.own", dict(found), depth)

    def _array(self, name: str, value: Any, depth: int) -> None:
        if value.dtype.hasobject:
            self.visit(name, value.tolist(), depth)
        else:
            self.texts.append(f"{name} {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}")

    def _module(self, name: str, value: nn.Module, depth: int) -> None:
        for key, part in [*value.named_parameters(), *value.named_buffers()]:
            full = f"{name}.{key}".replace("._orig_mod.", ".")
            if full not in self.numbers:
                self.numbers[full] = part
        for key, module in value.named_modules():
            self.visit(f"{name}.{key}", type(module), depth)
            if isinstance(module, torch.jit.ScriptModule):
                self._scripted(f"{name}.{key}", module)
                continue
            own = is_own_code(type(module).__module__)
            for word, given in vars(module).items():
                if word in ("_forward_hooks", "_forward_pre_hooks") and given:
                    self.visit(f"{name}.{key}.{word}", dict(given), depth)
                elif word not in _OF_MODULES and (own or callable(given) or isinstance(given, (*_PLAIN, tuple))):
                    self.visit(f"{name}.{key}.{word}", given, depth)

    def _scripted(self, name: str, module: Any) -> None:
        """A module that torch has compiled: its code, and its attributes that are neither parameters nor buffers."""
        try:
            data = io.BytesIO()
            torch.jit.save(module, data)
            with zipfile.ZipFile(data) as archive:
                inside = sorted(entry for entry in archive.namelist() if "/code/" in entry or entry.endswith(".pkl"))
                inside = [entry for entry in inside if not entry.endswith(".debug_pkl")]
                self.code += [hashlib.sha256(archive.read(entry)).hexdigest() for entry in inside]
        except (RuntimeError, AttributeError, zipfile.BadZipFile):
            self.unknown.add(f"{name} (a compiled module that cannot be saved)")

    def _function(self, name: str, value: types.FunctionType, depth: int) -> None:
        for k, cell in enumerate(value.__closure__ or ()):
            try:
                self.visit(f"{name}.{value.__code__.co_freevars[k]}", cell.cell_contents, depth)
            except ValueError:
                continue  # an empty cell
        for k, default in enumerate([*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]):
            self.visit(f"{name}.default{k}", default, depth)
        self._own(name, value, depth)
        self._modules.add(value.__module__ or "")
        if not is_own_code(value.__module__ or ""):
            self._package(value.__module__)
            return
        names = list[str]()
        self.code.append(instructions(value.__code__, names))
        for word in dict.fromkeys(names):
            if word not in value.__globals__:
                continue
            given = value.__globals__[word]
            if not isinstance(given, types.ModuleType):
                self.visit(word, given, depth)
            elif not is_own_code(given.__name__):
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
        self._modules.add(value.__module__)
        if not is_own_code(value.__module__):
            self._package(value.__module__)
            return
        for word, given in vars(value).items():
            if word not in _OF_CLASSES:
                self.visit(f"{value.__qualname__}.{word}", given, depth)
        for base in (*value.__bases__, type(value)):
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
        for k, (key, given) in enumerate(value.items()):
            plain = isinstance(key, (*_PLAIN, tuple)) and "0x" not in repr(key)
            self.visit(f"{name}[{key!r}]" if plain else f"{name}[{k}]", given, depth)
            if not plain:
                self.visit(f"{name}.key{k}", key, depth)
        if type(value) is not dict:
            self._own(name, value, depth)
            self.visit(name, type(value), depth)

    def _sequence(self, name: str, value: Any, depth: int) -> None:
        entries = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        self.texts.append(f"{name} {type(value).__name__} of {len(value)}")
        for k, given in enumerate(entries):
            self.visit(f"{name}[{k}]", given, depth)
        if type(value) not in (list, tuple, set, frozenset):
            self._own(name, value, depth)
            self.visit(name, type(value), depth)

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
        elif type(value) in _KEPT or _is_known(kind):
            found = {word: getattr(value, word) for word in _slots(kind) if hasattr(value, word)}
            for word, given in (found | getattr(value, "__dict__", {})).items():
                self.visit(f"{name}.{word}", given, depth)
        else:
            self.unknown.add(f"{name} ({kind.__module__}.{kind.__qualname__})")
        self.visit(name, kind, depth)

    def _package(self, module: str) -> None:
        top = module.partition(".")[0]
        if top and top not in sys.stdlib_module_names and top not in (*OURS, "__main__") and not is_own_code(module):
            self.packages.add(top)


def _is_known(kind: type) -> bool:
    """Whether all that an object of a class holds is in its attributes, as far as one can see."""
    return dataclasses.is_dataclass(kind) or is_own_code(kind.__module__) or kind.__module__.split(".")[0] in OURS


def _slots(kind: type) -> list[str]:
    found = list[str]()
    for one in kind.__mro__:
        slots = getattr(one, "__slots__", ())
        for word in (slots,) if isinstance(slots, str) else slots:
            hidden = word.startswith("__") and not word.endswith("__")
            found.append(f"_{one.__name__.lstrip('_')}{word}" if hidden else word)
    return found


def _text(value: Any) -> str:
    """A plain value as text; of the path of a file, also what is in it."""
    text = repr(value)
    if isinstance(value, str | Path) and len(str(value)) < 4096:
        try:
            if Path(value).is_absolute() and Path(value).is_file():
                text += f" {contents.digest(value)}"
        except (OSError, ValueError):
            pass
    return text


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
