"""What installed extension packages register by entry points, and what is said where one is not installed.

An entry point's group says what it adds, and its name under which name:

- `steadyflow.models`: a function that takes the name and returns the `Denoiser`;
- `steadyflow.datasets`: for the model of that name, a function of the part, "train" or "held-out", that returns samples
  and labels;
- `steadyflow.commands`: a `typer.Typer`, or a function that becomes a command.
"""

from importlib import metadata
from typing import Any

MODELS, DATASETS, COMMANDS = "steadyflow.models", "steadyflow.datasets", "steadyflow.commands"
LAB = {
    MODELS: (
        "faces",
        "mixture25",
        "mixture25-32d",
        "mixture25-8d",
        "triangles",
        "triangles-20",
        "triangles-40",
    ),
    DATASETS: ("faces",),
    COMMANDS: ("demo", "lab"),
}
"""What steadyflow-lab registers, for the sake of messages where it is not installed."""


def registered(group: str) -> dict[str, metadata.EntryPoint]:
    """The entry points of a group by their names, in the order of names; nothing is imported."""
    return {entry.name: entry for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name)}


def find(group: str, name: str) -> Any:
    """What an extension registered under a name, imported; None where there is nothing."""
    entry = registered(group).get(name)
    return None if entry is None else entry.load()


def hint(group: str, name: str) -> str:
    """How to get a name that nothing registers, where the lab has it; else an empty text."""
    if name not in LAB[group]:
        return ""
    return f"{name!r} is in steadyflow-lab: pip install steadyflow-lab (from a copy of the repository, ./lab)"
