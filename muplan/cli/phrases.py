"""Commands of two words beside a command of one: ``profile import`` beside ``profile MODEL``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class PhraseGroup(TyperGroup):
    """A group of commands in which a name may be a phrase; the longest that fits is meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first two words name, else that of the first."""
        phrase = " ".join(args[:2])
        if len(args) > 1 and phrase in self.commands:
            return phrase, self.commands[phrase], args[2:]
        return super().resolve_command(ctx, args)
