"""What is found: documents with their scores, and the best sentence of each as the model itself sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ssmoe_embed.data import Document
from ssmoe_embed.search.vectors import Array

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_END = re.compile(r"(?<=[.!?;:…。！？])[\"')\]]*\s+|\n\s*")
_MARKS = re.compile(
    r"^```[^\n]*\n(?P<block>.*?)(?:^```[^\n]*\n?|\Z)"
    r"|(?P<ticks>`+)(?P<code>[^`]+)(?P=ticks)"
    r"|(?<![\w\])])!?\[(?P<label>[^][\n]*)\]\([^()\s]*(?:\s\"[^\"\n]*\")?\)"
    r"|(?<!\w)\*\*(?P<bold>(?![\s*])[^\n]*?(?<![\s*]))\*\*(?!\w)"
    r"|^\#{1,6}[ \t]+"
    r"|`+",
    re.MULTILINE | re.DOTALL,
)
"""Markdown's marks around code, links, images and what is bold, and before headings; code keeps what is in it."""
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

    def shown(self) -> list[tuple[str, bool]]:
        """The snippet, or else the text, in parts and whether each is the best sentence, without Markdown's marks."""
        if self.snippet is None:
            return [(without_marks(self.document.text, 0, len(self.document.text)), False)]
        text, start, end = self.snippet.text, self.snippet.start, self.snippet.end
        parts = [(without_marks(text, 0, start), False), (without_marks(text, start, end), True)]
        return [part for part in [*parts, (without_marks(text, end, len(text)), False)] if part[0]]


def without_marks(text: str, start: int, end: int) -> str:
    """A part of a text without Markdown's marks, which are looked for in the whole of it."""
    kept, position = [], start
    for left, right in _marks(text, 0, len(text)):
        kept.append(text[position : min(left, end)])
        position = max(position, right)
    return "".join(kept) + text[position:end]


def _marks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where Markdown's marks begin and end, in their order."""
    for match in _MARKS.finditer(text, start, end):
        names = [name for name in ("block", "code", "label", "bold") if match[name] is not None]
        left, right = match.span(names[0]) if names else (match.end(), match.end())
        yield match.start(), left
        if names and names[0] in {"label", "bold"}:
            yield from _marks(text, left, right)
        yield right, match.end()


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
    """The hits for a query's unit vector `[D]` with their best sentences, of up to 40 of each that the model encodes."""
    spans = [sentence_spans(hit.document.text)[:_MOST_SENTENCES] for hit in hits]
    texts = [hit.document.text[a:b] for hit, own in zip(hits, spans, strict=True) for a, b in own if len(own) > 1]
    vectors = (
        model.encode_document(texts, show_progress_bar=False, convert_to_numpy=True)
        if texts
        else np.empty((0, len(query)))
    )
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    scores = iter(vectors @ query / lengths)
    marked = []
    for hit, own in zip(hits, spans, strict=True):
        ratings = [next(scores) for _ in own] if len(own) > 1 else [1.0]
        marked.append(replace(hit, snippet=_snippet(hit.document.text, own, int(np.argmax(ratings)))))
    return marked


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


@dataclass(frozen=True)
class Contribution:
    """One block's part in a score.

    Attributes:
        block: `hidden`, or `routing of layer 3`.
        size: Numbers in the block.
        score: What it adds; all blocks' add up to the score of the document.
        cosine: The similarity within the block alone.
    """

    block: str
    size: int
    score: float
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """The score of one document, taken apart.

    Attributes:
        id: The document.
        score: Its cosine similarity to the query.
        contributions: What the score is the sum of.
    """

    id: str
    score: float
    contributions: tuple[Contribution, ...]


def vector_blocks(model: SentenceTransformer) -> list[tuple[str, int]]:
    """Names and sizes of the blocks that a model's vectors consist of, in their order.

    Raises:
        ValueError: It is not a model of this package, or changes its vectors after they were joined.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize

    from ssmoe_embed.embedding.module import SSMoE
    from ssmoe_embed.families import family_of

    module = model[0]
    if not isinstance(module, SSMoE) or not all(isinstance(other, Normalize) for other in list(model)[1:]):
        raise ValueError(
            f"Only vectors of this package's models can be explained by block, and those of {type(module).__name__} have no "
            "blocks; search with a model made by `ssmoe build`."
        )
    chosen = module.settings.representation
    blocks = [("hidden", int(module.model.config.get_text_config().hidden_size))] if chosen.hidden else []
    if chosen.signal is not None:
        family = family_of(module.model)
        layers = family.layers(module.model)
        blocks += [(f"routing of layer {layer.index}", family.expert_count(layer)) for layer in layers]
    dimension = model.get_embedding_dimension()
    kept, left = [], sum(size for _, size in blocks) if dimension is None else dimension
    for name, size in blocks:
        if left > 0:  # a model may keep only the first numbers
            kept.append((name, min(size, left)))
        left -= size
    return kept


def explain(model: SentenceTransformer, query: Array, document: Array, id: str, score: float) -> Explanation:  # noqa: A002
    """Take the score that a search gives a document apart, from the unit vectors `[D]` of the query and of the document.

    Raises:
        ValueError: The model's vectors have no blocks.
    """
    query, document = query.astype(np.float64), document.astype(np.float64)
    contributions, start = [], 0
    for name, size in vector_blocks(model):
        mine, other = query[start : start + size], document[start : start + size]
        part = float(mine @ other)
        lengths = float(np.linalg.norm(mine) * np.linalg.norm(other))
        contributions.append(Contribution(name, size, part, part / lengths if lengths else 0.0))
        start += size
    return Explanation(id, score, tuple(contributions))
