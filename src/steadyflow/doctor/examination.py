"""The whole examination, topic by topic."""

from __future__ import annotations

from collections.abc import Iterable

from . import settings, versions
from .findings import Finding


def examine(*, imports: bool = False) -> list[Finding]:
    """Examine the installation.

    Args:
        imports: Whether also to import every extra that is installed, which finds damaged ones and takes some
            seconds for each.

    Returns:
        The findings, in the order of their topics: versions, devices, folders, settings, self test.
    """
    found = list(versions.findings(imports=imports))
    if any(one.name == "torch" and one.status == "fail" for one in found):
        where = [Finding("self test", "all", "note", "not run: it needs torch")]
        return [*found, *settings.findings(), *where]
    from . import devices, folders, self_test  # which import torch

    return [*found, *devices.findings(), *folders.findings(), *settings.findings(), *self_test.findings()]


def faults(found: Iterable[Finding]) -> list[Finding]:
    """The findings that something is broken, each with its remedy."""
    return [one for one in found if one.status == "fail"]
