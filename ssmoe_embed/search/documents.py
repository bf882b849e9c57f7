"""What a semantic index holds and what it finds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
    """One document of an index.

    Attributes:
        id: Its unique name; adding another document of the same id replaces it.
        text: What is searched.
        metadata: JSON values to filter by.
        title: Stands before the text when it is encoded.
        source: Where it comes from, such as a file with its lines.

    Raises:
        ValueError: The id is empty, the text is blank, or one of them is not a string.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id={self.id!r} is no name for a document; give a string that is not empty.")
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"The document {self.id!r} has no text; leave it out.")
        for name in ("id", "text", "title", "source"):
            value = getattr(self, name)
            if value is not None:  # half of a surrogate pair cannot be stored
                object.__setattr__(self, name, str(value).encode("utf-8", "replace").decode())
        try:
            plain = json.dumps(dict(self.metadata), ensure_ascii=False).encode("utf-8", "replace")
            object.__setattr__(self, "metadata", json.loads(plain))
        except (TypeError, ValueError) as error:
            raise ValueError(f"The metadata of document {self.id!r} are not JSON values ({error}).") from None

    @property
    def full_text(self) -> str:
        """Title and text together: what is encoded."""
        return f"{self.title}. {self.text}" if self.title else self.text

    @property
    def content(self) -> bytes:
        """A hash of what is encoded: documents alike in it share a vector."""
        return hashlib.sha256(self.full_text.encode()).digest()


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
        score: What the hits are ordered by: the cosine similarity, or the fused score of a hybrid search.
        similarity: The cosine similarity to the query.
        snippet: Its best part, where it was asked for.
    """

    document: Document
    score: float
    similarity: float
    snippet: Snippet | None = None


@dataclass(frozen=True)
class AddCounts:
    """What became of the documents that were added.

    Attributes:
        added: Documents of a new id.
        updated: Documents that replaced one of the same id.
        unchanged: Documents that were there already, just so.
        removed: Documents that were there and no longer are.
        encoded: Texts that went through the model; the others had a vector already.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    encoded: int = 0
    removed: int = 0

    @property
    def total(self) -> int:
        """All documents that were given."""
        return self.added + self.updated + self.unchanged

    def __add__(self, other: AddCounts) -> AddCounts:
        return AddCounts(
            self.added + other.added,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.encoded + other.encoded,
            self.removed + other.removed,
        )
