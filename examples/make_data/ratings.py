"""Texts that people rated: sentences of product reviews by sentiment, pairs of words by relatedness."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from make_data.files import Record

REVIEWS = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"
WORDS = "gensim/test/test_data/wordsim353.tsv"
CLEAR = 1.0
"""Mean rating, on a scale from -4 to 4, from which a sentence counts as positive; as negative below the negated value."""
FEWEST_WORDS, MOST_WORDS = 6, 40
PER_LABEL = {"train": 120, "test": 250}


def review_sentiment(root: Path) -> Iterator[Record]:
    """Sentences labelled by the mean of twenty raters; no review has sentences in both splits."""
    rated: dict[tuple[str, str], list[str]] = {(s, label): [] for s in PER_LABEL for label in ("negative", "positive")}
    seen: set[str] = set()
    for line in (root / REVIEWS).read_text(encoding="utf-8", errors="replace").splitlines():
        identifier, rating, text = line.split("\t", 2)
        text = " ".join(text.split())
        clear = abs(float(rating)) >= CLEAR and FEWEST_WORDS <= len(text.split()) <= MOST_WORDS
        if not clear or "\ufffd" in text or text.lower() in seen:
            continue
        seen.add(text.lower())
        review = identifier.split("_")[0]
        split = "train" if hashlib.sha256(review.encode()).digest()[0] % 3 == 0 else "test"
        rated[split, "positive" if float(rating) > 0 else "negative"].append(text)
    for (split, label), texts in rated.items():
        chosen = sorted(texts, key=lambda t: hashlib.sha256(t.encode()).digest())[: PER_LABEL[split]]
        yield from ({"text": text, "label": label, "split": split} for text in chosen)


def word_relatedness(root: Path) -> Iterator[Record]:
    """Pairs of different words with the mean of 13 to 16 ratings of their relatedness, 0 to 10."""
    for line in (root / WORDS).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            first, second, score = line.split("\t")
            if first != second:
                yield {"first": first, "second": second, "score": float(score)}
