"""Check, after the fact, which held-out passages the training really never saw.

`corpus.py` removes the sentences of held-out passages from everything else. This module does not trust it: it compares
sentence by sentence with what was distilled and read, and keeps the passages of which not one sentence was seen.
(The run that made the shipped weights used a corpus from which such sentences had not yet been removed.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from corpus import split_sentences
from holdout import normalise

DICTIONARIES = {"wordnet", "webster1913", "jargon", "devil"}
_SHORTEST = 16
"""Letters and digits; shorter sentences ("See above.") say nothing about having been seen."""


def sentence_keys(text: str) -> Iterator[str]:
    """Yield the normalised sentences of a text, and what follows a headword's colon."""
    for line in text.split("\n"):
        for part in (line, line.partition(": ")[2]):
            for sentence in split_sentences(part):
                key = normalise(sentence)
                if len(key) >= _SHORTEST:
                    yield key


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def unseen_passages(work: Path, distilled: int) -> dict[str, list[int]]:
    """Return the numbers of the held-out passages without a seen sentence, by `dictionaries` and `manuals`.

    Args:
        work: the folder of the training.
        distilled: how many of the first texts were distilled.
    """
    seen = {key for row in read_rows(work / "passages.jsonl") for key in sentence_keys(row["text"])}
    for number, row in enumerate(read_rows(work / "texts.jsonl")):
        if number < distilled:
            seen.update(sentence_keys(row["text"]))
    kept: dict[str, list[int]] = {"dictionaries": [], "manuals and quotations": []}
    for number, row in enumerate(read_rows(work / "heldout_passages.jsonl")):
        keys = list(sentence_keys(row["text"]))
        if keys and not any(key in seen for key in keys):
            kept["dictionaries" if row["source"] in DICTIONARIES else "manuals and quotations"].append(number)
    return kept


def held_out_definitions(work: Path) -> list[int]:
    """Return the numbers of the held-out texts that are glosses and examples of held-out words."""
    return [n for n, row in enumerate(read_rows(work / "heldout_texts.jsonl")) if row["kind"] != "sentence"]
