"""What installed extension packages register by entry points, and hints where such a package is not installed.

The group of an entry point says what it adds, and its name says under which name:

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
        "digits-flow",
        "faces",
        "mixture25",
        "mixture25-32d",
        "mixture25-base",
        "mixture25-wide",
        "mixture25-near",
        "mixture25-short",
        "mixture25-8d",
        "moving",
        "scenes",
        "triangles",
        "triangles-20",
        "triangles-40",
    ),
    DATASETS: ("digits-flow", "faces"),
    COMMANDS: ("demo", "lab"),
}
"""What steadyflow-lab registers, for messages where it is not installed."""


def registered(group: str) -> dict[str, metadata.EntryPoint]:
    """List the entry points of a group; nothing is imported.

    Args:
        group: `MODELS`, `DATASETS` or `COMMANDS`.

    Returns:
        The entry points by their names, in the order of names.
    """
    return {entry.name: entry for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name)}


def find(group: str, name: str) -> Any:
    """Import what an extension package registers under a name.

    Args:
        group: `MODELS`, `DATASETS` or `COMMANDS`.
        name: The name.

    Returns:
        What is registered; None if there is nothing.
    """
    entry = registered(group).get(name)
    return None if entry is None else entry.load()


def hint(group: str, name: str) -> str:
    """Say how to get something that is not registered.

    Args:
        group: `MODELS`, `DATASETS` or `COMMANDS`.
        name: The name that was asked for.

    Returns:
        What to install, if steadyflow-lab has something of this name; else an empty text.
    """
    if name not in LAB[group]:
        return ""
    return f"{name!r} is in steadyflow-lab: pip install steadyflow-lab (from a copy of the repository, ./lab)"
