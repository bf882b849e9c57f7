"""Texts that models are looked at with: the lines of a file, or a sample of what comes with the package."""

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
class TextSample:
    """Texts, and where they are from.

    Attributes:
        texts: The texts.
        labels: A label of each, where they have one.
        origin: What they are, in words.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    origin: str


def shipped_sample(count: int) -> TextSample:
    """Every n-th of the package's calibration texts, `count` at most; their labels are the sources they are from."""
    records = list(read_records("calibration.jsonl"))
    chosen = spread(records, count)
    texts, sources = (tuple(record[key] for record in chosen) for key in ("text", "source"))
    return _checked(TextSample(texts, sources, "the package's calibration texts"))


def file_sample(path: Path, count: int) -> TextSample:
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
    return _checked(TextSample(tuple(chosen), None, path.name))


def spread(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """`count` of the items, evenly spread over all of them and each at most once; all where there are not more."""
    kept = min(count, len(items))
    return [items[i * len(items) // kept] for i in range(kept)]


def _checked(sample: TextSample) -> TextSample:
    """The sample, if it is large enough."""
    different = len(set(sample.texts))
    if different < MINIMUM:
        raise ValueError(
            f"{sample.origin}: {different} different text(s) say too little about a router; pass at least {MINIMUM}, "
            "one a line."
        )
    return sample


_SHIPPED_CHARACTERS = 25
"""Shorter ones are single words."""


@dataclass(frozen=True)
class Corpora:
    """Two kinds of text.

    Attributes:
        first: Its name and documents.
        second: The same of the other kind.

    Raises:
        ValueError: Both have one name.
    """

    first: tuple[str, tuple[str, ...]]
    second: tuple[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if self.first[0] == self.second[0]:
            raise ValueError(
                f"Both kinds of text are called {self.first[0]!r}, so their results could not be told apart; pass two "
                "files of different names."
            )


def corpora(first: Path | None, second: Path | None, count: int) -> Corpora:
    """Files of one's own, or held-out definitions (WordNet) and prose (verses) that come with the package.

    Args:
        first: A text file, one document a line.
        second: Another kind of text.
        count: Documents of each, evenly spread over what there is.

    Raises:
        ValueError: Only one file is given, or both have one name, or one has too few lines.
    """
    if (first is None) != (second is None):
        raise ValueError("Pass two text files of different kinds, or none: stability is measured between them.")
    if first is not None and second is not None:
        kinds = [(path.stem, file_sample(path, count).texts) for path in (first, second)]
        return Corpora(*kinds)
    if count < MINIMUM:
        raise ValueError(f"{count} documents of a kind say too little; pass at least {MINIMUM}.")
    glosses = [record["query"] for record in read_records("offline/reverse_dictionary.jsonl") if "query" in record]
    verses = [text for record in read_records("offline/verse_reranking.jsonl") for text in record["positive"]]
    return Corpora(("definitions", _long_ones(glosses, count)), ("prose", _long_ones(verses, count)))


def _long_ones(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """So many of the different texts that are no single words, evenly spread over them."""
    return tuple(spread([text for text in dict.fromkeys(texts) if len(text) >= _SHIPPED_CHARACTERS], count))
