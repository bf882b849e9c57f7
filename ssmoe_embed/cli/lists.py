"""Options that take several values after one flag: `--methods router smoe` for `--methods router --methods smoe`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from typer.core import TyperCommand

_NUMBER = re.compile(r"-(\d|\.\d).*")


class ListCommand(TyperCommand):
    """A command whose options of several values may be given all of them at once.

    Such an option takes everything up to the next flag, so arguments stand before it, or after `--`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        flags = [flag for parameter in self.params if getattr(parameter, "multiple", False) for flag in parameter.opts]
        return super().parse_args(ctx, expand_lists(args, flags))


def expand_lists(args: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Repeat a flag before each of its values.

    Args:
        args: A command line.
        flags: The flags that take several values; a number below zero is a value, not a flag.
    """
    flags = set(flags)
    expanded: list[str] = []
    flag = None
    for position, arg in enumerate(args):
        if arg == "--":
            return [*expanded, *args[position:]]
        if arg.startswith("-") and not _NUMBER.fullmatch(arg):
            name, equals, value = arg.partition("=")
            flag = name if name in flags else None
            if flag and not equals:
                following = args[position + 1 : position + 2]
                if not following or _is_flag(following[0]):
                    expanded.append(arg)  # left for the parser to say that a value is missing
                continue
            expanded += [name, value] if flag else [arg]
        else:
            expanded += [flag, arg] if flag else [arg]
    return expanded


def _is_flag(arg: str) -> bool:
    return arg.startswith("-") and not _NUMBER.fullmatch(arg)
