"""Versions: of Python, of what the core depends on, and of the packages of each extra, beside the supported ones.

The supported versions are those of the installed package's metadata, which come from pyproject.toml.
"""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .._version import __version__
from .findings import Finding, cause_of

NAME = "steadyflow"
FOR_DEVELOPMENT = ("all", "dev", "docs", "peers")
"""Extras that are no part of using the library."""
MODULES = {"scikit-learn": "sklearn", "scikit-image": "skimage", "pillow": "PIL"}
"""Modules of packages that have another name."""

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?:\[[^]]*\])?\s*(?P<range>[^;]*)(?:;.*extra == ['\"](?P<extra>\w+))?")
_BOUND = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([\w.*+!]+)")


@dataclass(frozen=True)
class Requirement:
    """A package, the versions of it that are supported, and the extra that needs it; "" for the core."""

    package: str
    supported: str
    extra: str = ""

    @property
    def module(self) -> str:
        """The module that the package is imported as."""
        return MODULES.get(self.package, self.package.replace("-", "_"))


def parse(lines: Iterable[str]) -> list[Requirement]:
    """Requirements from lines of metadata, such as `scipy>=1.11; extra == 'data'`.

    Raises:
        ValueError: A line is no requirement.
    """
    found: list[Requirement] = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None:
            raise ValueError(f"{line!r} is no requirement")
        found.append(Requirement(match["name"].lower(), match["range"].strip(), match["extra"] or ""))
    return found


def release(version: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version, with zeros up to six of them: (2, 13, 0, 0, 0, 0) of "2.13.0+cpu"."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    return (*numbers, *[0] * (6 - len(numbers)))


def is_supported(version: str, supported: str) -> bool:
    """Whether a version is in a range, such as ">=1.4,<2"; what follows its numbers, as in "2.0rc1", does not count."""
    return all(_holds(release(version), sign, bound) for sign, bound in _BOUND.findall(supported))


def _holds(mine: tuple[int, ...], sign: str, bound: str) -> bool:
    other, prefix = release(bound), bound.count(".")
    if sign == "~=":
        return mine >= other and mine[:prefix] == other[:prefix]
    if bound.endswith(".*"):
        return (mine[:prefix] == other[:prefix]) == (sign == "==")
    return {
        ">=": mine >= other,
        "<=": mine <= other,
        ">": mine > other,
        "<": mine < other,
        "==": mine == other,
        "!=": mine != other,
    }[sign]


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def findings(*, imports: bool = False) -> Iterator[Finding]:
    """Look at all versions.

    Args:
        imports: Whether also to import the packages of extras that are installed.
    """
    try:
        python = metadata.metadata(NAME)["Requires-Python"] or ""
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        python, lines = None, []
    yield _python(python or "")
    yield _own(python is not None)
    wanted = parse(lines)
    for one in [one for one in wanted if not one.extra] or [Requirement("torch", ""), Requirement("numpy", "")]:
        yield _core(one)
    extras = dict.fromkeys(one.extra for one in wanted if one.extra and one.extra not in FOR_DEVELOPMENT)
    for extra in extras:
        yield _extra(extra, [one for one in wanted if one.extra == extra], imports)


def _python(supported: str) -> Finding:
    version = platform.python_version()
    says = f"{version}, {platform.python_implementation()} on {platform.system()} {platform.machine()}"
    if is_supported(version, supported):
        return Finding("versions", "python", "pass", says, figures={"version": version})
    return Finding(
        "versions", "python", "fail", f"{says}, but {supported} is needed", f"install Python {supported}",
        {"version": version},
    )  # fmt: skip


def _own(known: bool) -> Finding:
    where = Path(__file__).parents[1]
    figures = {"version": __version__, "folder": str(where)}
    if not known:
        says = f"{__version__} in {where}, not installed as a package, so that the supported versions are not known"
        return Finding("versions", NAME, "note", says, "pip install . in a copy of the repository", figures)
    if (told := metadata.version(NAME)) != __version__:
        says = f"{__version__} in {where}, but {told} is what is installed"
        return Finding("versions", NAME, "note", says, "pip install . in the copy of the repository again", figures)
    return Finding("versions", NAME, "pass", f"{__version__} in {where}", figures=figures)


def _core(one: Requirement) -> Finding:
    """A package of the core, which is imported."""
    version, again = installed(one.package), f"pip install --force-reinstall '{one.package}{one.supported}'"
    figures = {"version": version, "supported": one.supported}
    if version is None:
        return Finding("versions", one.package, "fail", "not installed", f"pip install '{one.package}{one.supported}'")
    if not is_supported(version, one.supported):
        says = f"{version}, but {one.supported} is needed"
        return Finding("versions", one.package, "fail", says, f"pip install '{one.package}{one.supported}'", figures)
    try:
        module = importlib.import_module(one.module)
    except Exception as error:  # whatever a package's own import raises
        says = f"{version}, installed but cannot be imported ({cause_of(error)})"
        return Finding("versions", one.package, "fail", says, again, figures)
    says = version
    if one.package == "torch":
        made = module.version
        build = f"CUDA {made.cuda}" if made.cuda else f"ROCm {made.hip}" if getattr(made, "hip", None) else "the CPU"
        says, figures = f"{version}, built for {build}", {**figures, "build": build}
    return Finding("versions", one.package, "pass", says, figures=figures)


def _extra(extra: str, wanted: list[Requirement], imports: bool) -> Finding:
    """The packages of an extra, some of which may be missing."""
    found = {one.package: installed(one.package) for one in wanted}
    install = f"pip install '{NAME}[{extra}]'"
    figures = {"packages": found}
    listed = ", ".join(f"{package} {version or 'not installed'}" for package, version in found.items())
    missing = [package for package, version in found.items() if version is None]
    own = [one for one in wanted if one.package != "torch"]  # of torch an extra may need a later version
    if all(one.package in missing for one in own):
        return Finding("versions", extra, "note", f"not installed: {install}", install, figures)
    old = [
        f"{one.package} {found[one.package]} is not {one.supported}"
        for one in wanted
        if one.package not in missing and not is_supported(found[one.package] or "", one.supported)
    ]
    if old:
        return Finding("versions", extra, "fail", f"{listed}; {', '.join(old)}", f"{install} --upgrade", figures)
    for one in own if imports else []:
        if one.package in missing:
            continue
        try:
            importlib.import_module(one.module)
        except Exception as error:  # whatever a package's own import raises
            says = f"{listed}; {one.package} is installed but cannot be imported ({cause_of(error)})"
            remedy = f"pip install --force-reinstall '{one.package}{one.supported}'"
            return Finding("versions", extra, "fail", says, remedy, figures)
    return Finding("versions", extra, "note" if missing else "pass", listed, install if missing else "", figures)
