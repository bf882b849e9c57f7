"""The words of a text: what stands between white space, less the punctuation around it."""

from __future__ import annotations

import functools
import re
import unicodedata

TOKEN = re.compile(r"\S+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each word, without the punctuation around it."""
    spans = []
    for match in TOKEN.finditer(text):
        start, end = match.span()
        while start < end and _is_punctuation(text[start]):
            start += 1
        while start < end and _is_punctuation(text[end - 1]):
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans


def exchange(text: str, changes: list[tuple[int, int, str]]) -> str:
    """The text with each span, in order, exchanged for a string."""
    pieces, done = [], 0
    for start, end, new in changes:
        pieces += [text[done:start], new]
        done = end
    return "".join([*pieces, text[done:]])


def is_stopword(word: str) -> bool:
    """Whether a word is on scikit-learn's English list; endings such as 's, 'll and n't do not matter."""
    word = word.lower().replace("’", "'")
    return bool({word, word.replace("'", ""), word.split("'")[0], word.split("n't")[0]} & _stopwords())


@functools.cache
def _stopwords() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
