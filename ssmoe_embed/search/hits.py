"""What is found: documents with their scores, and the best sentence of each as the model itself sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ssmoe_embed.data.documents import Document
from ssmoe_embed.search.vectors import Array

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_END = re.compile(r"(?<=[.!?;:…。！？])[\"')\]]*\s+|\n\s*")
_MOST_SENTENCES = 40
_LONGEST = 500
"""Characters of a snippet, unless its sentence alone has more."""


@dataclass(frozen=True)
class Snippet:
    """The part of a document that fits a query best.

    Attributes:
        text: The best sentence with what stands around it.
        start: Where the best sentence begins in `text`.
        end: Where it ends.
    """

    text: str
    start: int
    end: int

    @property
    def sentence(self) -> str:
        """The best sentence."""
        return self.text[self.start : self.end]


@dataclass(frozen=True)
class Hit:
    """One document found.

    Attributes:
        document: The document.
        score: What the hits are ordered by: fused, the cosine similarity, or the share of words, as `SearchMode` says.
        similarity: The cosine similarity to the query; None where only words were looked for.
        words: The share of the query's words that the document has, by their weight in BM25; None where only meaning was
            looked for.
        weak: Whether a query about something else would find as much.
        snippet: Its best part, where it was asked for.
    """

    document: Document
    score: float
    similarity: float | None = None
    words: float | None = None
    weak: bool = False
    snippet: Snippet | None = None


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences or lines of a text begin and end, without the space around them."""
    spans, start = [], 0
    for end, following in [*((match.start(), match.end()) for match in _END.finditer(text)), (len(text), len(text))]:
        piece = text[start:end]
        if any(letter.isalnum() for letter in piece):
            left = len(piece) - len(piece.lstrip())
            spans.append((start + left, start + len(piece.rstrip())))
        start = following
    return spans or [(0, len(text))]


def with_snippets(model: SentenceTransformer, query: Array, hits: Sequence[Hit]) -> list[Hit]:
    """The hits with their best sentences.

    Args:
        model: The model; it encodes up to 40 sentences of each hit.
        query: The query's unit vector `[D]`.
        hits: What was found.
    """
    spans = [sentence_spans(hit.document.text)[:_MOST_SENTENCES] for hit in hits]
    texts = [hit.document.text[a:b] for hit, own in zip(hits, spans, strict=True) for a, b in own if len(own) > 1]
    scores = iter(_similarities(model, query, texts))
    marked = []
    for hit, own in zip(hits, spans, strict=True):
        ratings = [next(scores) for _ in own] if len(own) > 1 else [1.0]
        marked.append(replace(hit, snippet=_snippet(hit.document.text, own, int(np.argmax(ratings)))))
    return marked


def _similarities(model: SentenceTransformer, query: Array, texts: list[str]) -> list[float]:
    """Cosine of the query with each text."""
    if not texts:
        return []
    vectors = model.encode_document(texts, show_progress_bar=False, convert_to_numpy=True)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    return [float(score) for score in vectors @ query / lengths]


def _snippet(text: str, spans: Sequence[tuple[int, int]], best: int) -> Snippet:
    """The best sentence with as many of its neighbours as fit."""
    first, last = best, best
    while True:
        for a, b in ((first, last + 1), (first - 1, last)):
            if a >= 0 and b < len(spans) and spans[b][1] - spans[a][0] <= _LONGEST:
                first, last = a, b
                break
        else:
            break
    start = spans[first][0]
    return Snippet(text[start : spans[last][1]], spans[best][0] - start, spans[best][1] - start)
