"""What a server searches, behind one interface: a semantic index, or the corpus that comes with the package."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Entry:
    """One document.

    Attributes:
        id: Its name in the corpus.
        title: A short name for people; may be empty.
        text: All of it.
        source: Where it comes from; may be empty.
        metadata: Whatever else is known.
    """

    id: str
    title: str
    text: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The document as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """One document found.

    Attributes:
        entry: The document.
        score: What the hits are ordered by: the cosine similarity, or the fused score of a hybrid search.
        similarity: The cosine similarity to the query.
        snippet: A piece of its text.
        best: Where in the snippet the sentence nearest to the query is: first character, and the one after its last.
    """

    entry: Entry
    score: float
    similarity: float
    snippet: str
    best: tuple[int, int] | None

    def as_dict(self) -> dict[str, Any]:
        """The hit as JSON, the snippet in parts before, in and after the best sentence."""
        begin, end = self.best or (0, 0)
        parts = [
            {"text": self.snippet[first:last], "best": best}
            for first, last, best in ((0, begin, False), (begin, end, True), (end, None, False))
            if self.snippet[first:last]
        ]
        known = {name: value for name, value in self.entry.as_dict().items() if name != "text"}
        return known | {"score": self.score, "similarity": self.similarity, "snippet": parts}


@dataclass(frozen=True)
class Sample:
    """Some documents of a corpus.

    Attributes:
        entries: The `n` documents.
        vectors: Their vectors `[n,D]`.
        fingerprint: A short text that is another one when the corpus' documents or vectors are.
    """

    entries: Sequence[Entry]
    vectors: np.ndarray[Any, Any]
    fingerprint: str


class Corpus(ABC):
    """Documents that can be searched. Methods that use the model run in the model's thread only."""

    name: str
    """For people."""
    folder: Path | None = None
    """Where things made of the corpus may be kept."""
    hybrid: bool = False
    """Whether it can join its search with BM25."""
    explains: bool = False
    """Whether it can say what a score is made of."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def search(
        self, query: str, top: int, filters: Mapping[str, Sequence[str]], *, hybrid: bool = False, snippets: bool = True
    ) -> list[Found]:
        """The documents nearest to a query, best first; of each filter's values they must have one.

        Raises:
            ValueError: A filter is not possible.
        """

    def explain(self, query: str, name: str) -> list[tuple[str, float]]:
        """The blocks of a document's vector and what each contributes to its score.

        Raises:
            ValueError: That is not known.
        """
        raise ValueError(f"What the score of {name!r} is made of is not known; serve an index made by `ssmoe index`.")

    @abstractmethod
    def get(self, name: str) -> Entry | None:
        """The document of that id, if there is one."""

    @abstractmethod
    def sample(self, most: int) -> Sample:
        """At most so many documents, evenly spread, as they are at one moment."""

    @abstractmethod
    def vectors(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """The vectors `[n,D]` of the documents of those ids."""


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the positions `0 … count-1`, evenly spread."""
    if count <= most:
        return list(range(count))
    return [int(position) for position in np.linspace(0, count - 1, most)]


def digest(parts: Sequence[str]) -> str:
    """A short text that stands for many."""
    summary = hashlib.sha256()
    for part in parts:
        summary.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return summary.hexdigest()[:16]
