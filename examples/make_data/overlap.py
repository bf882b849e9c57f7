"""Which content words two texts share."""

import re
from functools import cache

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

STEM_LENGTH = 5
"""Words are compared by their first letters, which catches most inflections and derivations."""


@cache
def stems(text: str) -> frozenset[str]:
    """Beginnings of the content words of a text."""
    words = re.findall(r"[a-z]{2,}", text.lower())
    return frozenset(word[:STEM_LENGTH] for word in words if word not in ENGLISH_STOP_WORDS)


def overlap(first: str, second: str) -> float:
    """Jaccard index of the two texts' stems, 0 when they share none."""
    a, b = stems(first), stems(second)
    return len(a & b) / max(len(a | b), 1)


class WordCosine:
    """Cosine of TF-IDF vectors of words and word pairs, stop words included: what a bag of words sees."""

    def __init__(self, texts: list[str]) -> None:
        vectors = TfidfVectorizer(ngram_range=(1, 2)).fit_transform(texts)
        self.vectors = {text: vectors[i] for i, text in enumerate(texts)}

    def __call__(self, first: str, second: str) -> float:
        """The cosine of two of the texts, rounded so that no machine's arithmetic matters."""
        return round(float(self.vectors[first].multiply(self.vectors[second]).sum()), 6)
