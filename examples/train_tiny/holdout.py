"""Which words and passages no part of the training may see.

The rule needs no list: it hashes the word (or the passage), so the tokenizer, the language model,
the distillation and the evaluation tasks agree on it without sharing any file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

WORD_FRACTION = 20
"""One headword in this many is held out."""
PASSAGE_FRACTION = 50
"""One passage of running prose in this many is held out."""

_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")


def is_held_out(word: str) -> bool:
    """Say whether a dictionary headword is held out.

    Upper case, surrounding space and the underscores of WordNet do not matter.
    """
    key = word.strip().lower().replace("_", " ")
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % WORD_FRACTION == 0


def is_held_out_synset(lemmas: Iterable[str]) -> bool:
    """Say whether a WordNet synset is held out: it is when any of its lemmas is."""
    return any(is_held_out(lemma) for lemma in lemmas)


def is_held_out_passage(text: str) -> bool:
    """Say whether a section or paragraph of running prose is held out."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % PASSAGE_FRACTION == 0


def normalise(text: str) -> str:
    """Reduce a text to its lower-case letters and digits, so that copies of a gloss are recognised."""
    return _NOT_ALPHANUMERIC.sub("", text.lower())
