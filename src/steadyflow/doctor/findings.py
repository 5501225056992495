"""What an examination finds, line by line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Raises:
        ValueError: It is a fault without a remedy.
    """

    topic: str
    """"versions", "devices", "folders", "settings" or "self test"."""
    name: str
    """What was looked at."""
    status: Status
    """"pass"; "note" for what is worth knowing and not broken; "fail" for what is broken."""
    says: str
    """What was found, in words, with the number and its bound where there are such."""
    remedy: str = ""
    """What to do about it; of every fault, and of some notes."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs."""

    def __post_init__(self) -> None:
        if self.status == "fail" and not self.remedy:
            raise ValueError(f"{self.name}: a fault needs a remedy")


def cause_of(error: BaseException) -> str:
    """The kind of an exception and the first line of its message."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
