"""Texts that the bundled model never saw, of two kinds, and texts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssmoe_embed.data import read_records
from ssmoe_embed.evaluation.inspection.texts import MINIMUM, file_sample, spread

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
