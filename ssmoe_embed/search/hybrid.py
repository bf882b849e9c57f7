"""Search by words (BM25 in SQLite), and its fusion with the search by meaning.

Both halves are put on a scale of their own: a similarity counts by how many standard deviations it lies above the usual one
of the corpus, the words by their share of what BM25 could give at most. So the half that has nothing to say for a query adds
nothing, which reciprocal ranks cannot know. `benchmarks/first_contact.py` compares the two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.search.manifest import Manifest
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.vectors import Array

_WORD = re.compile(r"[^\W_]+")
_MOST_WORDS = 48
"""Words of a query that are looked for: the rarest."""
_TITLE_WEIGHT = 3.0
"""How often a word of the title counts."""
_K1 = 1.2
"""FTS5's own, which cannot be set: a word adds less than its weight × (k1 + 1)."""
_FEW_DOCUMENTS = 20
_DEVIATIONS = 3.5
"""A similarity so many standard deviations above the usual one counts as much as all words of the query."""
_WEAK = 0.3
"""A fused score above what chance gives by less than this is no find."""


class SearchMode(Choice):
    """What a query and a document are compared by."""

    HYBRID = "hybrid"
    """Meaning and words."""
    VECTORS = "vectors"
    """Meaning alone: the cosine similarity of their vectors."""
    WORDS = "words"
    """Words alone: BM25."""


@dataclass(frozen=True)
class Usual:
    """How similar a query is to the documents of a corpus in general.

    Attributes:
        mean: The mean cosine similarity.
        deviation: The standard deviation of the similarities.
        documents: How many documents there are.
    """

    mean: float
    deviation: float
    documents: int

    @classmethod
    def of(cls, query: Array, sample: Array, documents: int) -> Usual:
        """Of a unit vector `[D]`, by a sample `[n,D]` of the corpus of so many documents."""
        if not len(sample):
            return cls(0.0, 0.0, documents)
        similarities = sample @ query  # [n]
        return cls(float(similarities.mean()), float(similarities.std()), documents)

    def fused(self, similarity: float | None, words: float | None) -> float:
        """One score of a similarity and a share of words, either of which may be missing."""
        above = 0.0
        if similarity is not None and self.deviation > 0:
            above = (similarity - self.mean) / self.deviation
        return above / _DEVIATIONS + (words or 0.0)

    def is_weak(self, similarity: float | None, words: float | None) -> bool:
        """Whether the nearest of so many documents would be as near to a query about something else.

        Of `N` similarities the largest is about √(2 ln N) deviations above the mean.
        """
        chance = math.sqrt(2 * math.log(max(1, self.documents))) if similarity is not None else 0.0
        return self.fused(similarity, words) - chance / _DEVIATIONS < _WEAK


def word_shares(
    store: Store, manifest: Manifest, text: str, limit: int, filters: Mapping[str, Any] | None = None
) -> list[tuple[int, float]]:
    """Documents that have words of a text: `(seq, share)`, best first.

    The share is the BM25 score over the most that a document could get, so 1 means every word, often. A word of more than
    half of the documents is left out: it says nothing, and finding all of them takes long.
    """
    words = list(dict.fromkeys(word.casefold() for word in _WORD.findall(text)))
    words = [word for word in words if len(word) > 1] or words
    held = store.held()
    counts = {word: store.count_word(f'"{word}"') for word in words[: 4 * _MOST_WORDS]}
    telling = [word for word, count in counts.items() if held < _FEW_DOCUMENTS or 2 * count < held]
    rarest = sorted(telling, key=counts.__getitem__)[:_MOST_WORDS]
    known = [f'"{word}"' for word in rarest if counts[word]]
    if not known:
        return []
    # the weight of a word as FTS5 computes it
    weights = [max(1e-6, math.log((held - counts[word] + 0.5) / (counts[word] + 0.5))) for word in rarest]
    most = (_K1 + 1) * sum(weights)
    unseen = held - manifest.documents
    found = store.matching(" OR ".join(known), limit, title=_TITLE_WEIGHT, unseen=unseen, filters=filters)
    return [(seq, min(1.0, score / most)) for seq, score in found]
