"""Conditions on documents: as people write them, and as the database answers them.

`lang=en` asks for a value, `path=notes/*.md` for a pattern, `year>=1999` or `year=1999..2005` for a range. Of the conditions
`key=…` with one key a document must meet one, of the others every one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ID = "id"
"""The key that means a document's id, which is not among the facets."""
_FORM = re.compile(r"\s*(?P<key>[^=<>]*[^=<>\s])\s*(?P<operator><=|>=|=|<|>)\s*(?P<value>.*?)\s*", re.DOTALL)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_DATE = r"\d{4}-\d\d(?:-\d\d)?\S*?"
_RANGE = re.compile(rf"(?P<low>{_NUMBER}|{_DATE})\.\.(?P<high>{_NUMBER}|{_DATE})")


@dataclass(frozen=True)
class Criterion:
    """What a value must be.

    Attributes:
        operator: `=`, `<`, `<=`, `>` or `>=`; numbers are compared as numbers, everything else as text.
        value: What it is compared with. After `=`, `*` and `?` stand for any characters and for any one of them.
    """

    operator: str
    value: str


def parse_filters(conditions: Iterable[str]) -> dict[str, list[Criterion]]:
    """For each key its conditions; space around a key or a value means nothing.

    Raises:
        ValueError: A condition is written otherwise.
    """
    found: dict[str, list[Criterion]] = {}
    for condition in conditions:
        parts = _FORM.fullmatch(condition)
        if parts is None:
            raise ValueError(
                f"filter={condition!r} is not of the form key=value, such as lang=en, 'path=notes/*', 'year>=1999' or "
                "year=1999..2005."
            )
        bounds = _RANGE.fullmatch(parts["value"]) if parts["operator"] == "=" else None
        made = [Criterion(parts["operator"], parts["value"])]
        if bounds:
            made = [Criterion(">=", bounds["low"]), Criterion("<=", bounds["high"])]
        found.setdefault(parts["key"], []).extend(made)
    return found


def conditions_sql(filters: Mapping[str, Any] | None) -> tuple[str, list[Any]]:
    """SQL that rows of the documents must meet, which begins with AND or is empty, with its parameters.

    Args:
        filters: For each key a value, which is compared exactly, a `Criterion`, or a list of them.
    """
    sql, values = "", []
    for key, wanted in (filters or {}).items():
        asked = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
        equal = [one for one in asked if not isinstance(one, Criterion) or one.operator == "="]
        groups = [equal] if equal or not asked else []
        groups += [[one] for one in asked if isinstance(one, Criterion) and one.operator != "="]
        for group in groups:
            parts = [_compared(one, "id" if key == ID else "value") for one in group]
            met = " OR ".join(part for part, _ in parts) or "0"
            if key == ID:
                sql += f" AND ({met})"
            else:
                sql += f" AND seq IN (SELECT seq FROM facets WHERE key = ? AND ({met}))"
                values.append(key)
            values += [value for _, own in parts for value in own]
    return sql, values


def facet_of(value: Any) -> tuple[str, float | None]:
    """A metadata value as filters compare it: as text, and as a number if it is one."""
    if isinstance(value, bool):
        return str(value).lower(), None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text, float(text) if re.fullmatch(_NUMBER, text) else None


def _compared(wanted: Any, column: str) -> tuple[str, list[Any]]:
    """One condition as SQL on a column of text, with its parameters."""
    if not isinstance(wanted, Criterion):
        return f"{column} = ?", [facet_of(wanted)[0]]
    text, number = facet_of(wanted.value)
    if wanted.operator == "=":
        if "*" in text or "?" in text:  # as text too: what a hit prints must find it again
            return f"({column} = ? OR {column} GLOB ?)", [text, text.replace("[", "[[]")]
        spelled = {text} if number is None else {text, facet_of(number)[0], str(number)}
        return f"{column} IN ({','.join('?' * len(spelled))})", sorted(spelled)
    if number is not None and column == "value":
        return f"number {wanted.operator} ?", [number]
    return f"{column} {wanted.operator} ?", [text]
