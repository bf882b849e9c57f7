"""Conditions on documents as people write them: `key=value`."""

from __future__ import annotations

from collections.abc import Iterable


def parse_filters(conditions: Iterable[str]) -> dict[str, list[str]]:
    """For each key the values that a document may have; space around a key or a value means nothing.

    Raises:
        ValueError: A condition is written otherwise.
    """
    found: dict[str, list[str]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not key.strip() or not equals:
            raise ValueError(f"filter={condition!r} is not of the form key=value, such as lang=en.")
        found.setdefault(key.strip(), []).append(value.strip())
    return found
