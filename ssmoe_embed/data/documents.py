"""What is searched: one document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Document:
    """One document of a corpus or an index.

    Attributes:
        id: Its unique name; adding another document of the same id replaces it.
        text: What is searched.
        metadata: JSON values to filter by. Under `image` a picture's `path` and `sha256`: such a document is encoded as that
            picture, and its text, words for it, is only searched by words.
        title: Stands before the text when it is encoded.
        source: Where it comes from, such as a file with its lines.

    Raises:
        ValueError: The id is empty, the text is blank, one of them is not a string, or the metadata are not JSON.
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
            plain = json.dumps(dict(self.metadata), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
            object.__setattr__(self, "metadata", json.loads(plain))
        except (TypeError, ValueError) as error:
            raise ValueError(f"The metadata of document {self.id!r} are not JSON values ({error}).") from None

    @property
    def image(self) -> Path | None:
        """The picture that the document is; None for a text."""
        known = self.metadata.get("image")
        return Path(known["path"]) if isinstance(known, Mapping) and "path" in known else None

    @property
    def full_text(self) -> str:
        """Title and text together: what is encoded."""
        return f"{self.title}. {self.text}" if self.title else self.text

    @property
    def content(self) -> bytes:
        """A hash of what is encoded: documents alike in it share a vector."""
        encoded = self.full_text if self.image is None else f"\0image {self.metadata['image'].get('sha256')}"
        return hashlib.sha256(encoded.encode()).digest()
