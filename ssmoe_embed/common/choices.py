"""Settings that are one of a few names, validated where they enter."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum
from typing import TypeVar

ChoiceT = TypeVar("ChoiceT", bound="Choice")


class Choice(str, Enum):
    """A string setting with a closed list of values, equal to its plain string."""

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def parse(cls: type[ChoiceT], value: object, setting: str) -> ChoiceT:
        """Return the member named `value`.

        Raises:
            ValueError: `value` names no member; the message lists the allowed values.
        """
        try:
            return cls(value)
        except ValueError:
            raise ValueError(unknown(setting, value, [member.value for member in cls])) from None


def unknown(setting: str, value: object, allowed: Iterable[str]) -> str:
    """The message for a `value` that is not among the `allowed` ones, with the nearest match."""
    allowed = list(allowed)
    near = get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{setting}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}.{hint}"
