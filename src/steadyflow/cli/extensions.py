"""Commands that installed packages add, by entry points of the group "steadyflow.commands".

An entry point is a `typer.Typer`, or a function that becomes a command, with its attribute `epilog` below the help. It
is imported when its command is wanted, or shown in the help of all.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from .._internal import extensions
from ..errors import InputError


class WithExtensions(TyperGroup):
    """Our own commands, and those of installed packages."""

    _completing = False
    """Whether names of commands are being completed."""

    def list_commands(self, ctx: Any) -> list[str]:
        ours = super().list_commands(ctx)
        return [*ours, *(name for name in extensions.registered(extensions.COMMANDS) if name not in ours)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        if self._completing:
            return _command(cmd_name, _unopened)
        made = extensions.find(extensions.COMMANDS, cmd_name)
        if made is not None:
            return _command(cmd_name, made)
        if ctx.resilient_parsing:  # behind an unknown command nothing is completed
            return None
        hint = extensions.hint(extensions.COMMANDS, cmd_name)
        if hint:
            raise InputError(f"command: {hint}")
        return None

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete names of commands; those of installed packages are not imported for it."""
        self._completing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._completing = False


def _unopened() -> None:
    """A command of an installed package."""


def _command(name: str, made: Any) -> Any:
    """What an entry point has given, as a command."""
    if isinstance(made, typer.Typer):
        command = typer.main.get_group(made)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(name, epilog=getattr(made, "epilog", None))(made)
        command = typer.main.get_command(alone)
    command.name = name
    return command
