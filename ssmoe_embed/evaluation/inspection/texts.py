"""The texts that diagnostics read: a file's lines, or a sample of what comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ssmoe_embed.data import read_records

ItemT = TypeVar("ItemT")

MINIMUM = 16
"""Fewest different texts that say anything about a router."""


@dataclass(frozen=True)
class Sample:
    """Texts, and where they are from.

    Attributes:
        texts: The texts.
        labels: A label of each, where they have one.
        origin: What they are, in words.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    origin: str


def shipped_sample(count: int) -> Sample:
    """Every n-th of the package's calibration texts; their labels are the sources they were taken from.

    Args:
        count: Texts, at most.
    """
    records = list(read_records("calibration.jsonl"))
    chosen = spread(records, count)
    return _checked(
        Sample(
            tuple(record["text"] for record in chosen),
            tuple(record["source"] for record in chosen),
            "the package's calibration texts",
        )
    )


def file_sample(path: Path, count: int) -> Sample:
    """Every n-th line of a text file; empty lines do not count.

    Args:
        path: The file, in UTF-8.
        count: Texts, at most.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, or has too few lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; pass a text file with one text a line.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); convert it first.") from None
    chosen = spread(lines, count)
    return _checked(Sample(tuple(chosen), None, path.name))


def spread(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """So many of the items, evenly spread over all of them and each at most once; all where there are not more.

    Args:
        items: The items.
        count: How many, at most.
    """
    kept = min(count, len(items))
    return [items[i * len(items) // kept] for i in range(kept)]


def _checked(sample: Sample) -> Sample:
    """The sample, if it is large enough."""
    different = len(set(sample.texts))
    if different < MINIMUM:
        raise ValueError(
            f"{sample.origin}: {different} different text(s) say too little about a router; pass at least {MINIMUM}, "
            "one a line."
        )
    return sample
