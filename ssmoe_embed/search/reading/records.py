"""What files of every kind are read as: records, each a text with what is known of it, or what is wrong with it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.search.reading.passages import WORDS

Moved = Callable[[int], None]
"""Is told how many bytes of a file have been read."""


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Attributes:
        field: Where a record holds its text.
        encoding: Of text files without a mark (BOM).
        words: How many words a passage has at most.
        images: Whether pictures are read.
    """

    field: str = "text"
    encoding: str = "utf-8"
    words: int = WORDS
    images: str = "no"


@dataclass(frozen=True)
class Record:
    """A line, row or passage.

    Attributes:
        place: Where in its file it is.
        text: Its text; whatever stands there in a file that may hold anything.
        given: Its `id`, `title` and `source`, where it has them.
        metadata: Everything else.
        fault: What is wrong with it; then there is nothing else.
    """

    place: str
    text: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


class Images(Choice):
    """Whether pictures are documents."""

    NO = "no"
    """They are skipped."""
    TOO = "too"
    """Beside texts."""
    ONLY = "only"
    """And texts are skipped."""


class FileKind(Choice):
    """What a file is read as."""

    LINES = "lines"
    """A text on each line."""
    JSON_LINES = "json lines"
    """An object on each line."""
    TABLE = "table"
    """A row each, below a row of names."""
    PARQUET = "parquet"
    """A row each."""
    TEXT = "text"
    """Passages of plain text."""
    MARKDOWN = "markdown"
    """Passages below headings."""
    HTML = "html"
    """Passages of a page."""
    WORD = "word"
    """Passages of a docx file."""
    PDF = "pdf"
    """Passages of the pages."""
    IMAGE = "image"
    """A picture, for a model that reads them."""

    @classmethod
    def of(cls, path: Path, *, in_folder: bool = False) -> FileKind | None:
        """The kind that a file's name says; None if it says none.

        Args:
            path: The file.
            in_folder: A text file that was found in a folder is passages; one that was named itself, a text a line.
        """
        if path.suffix.lower() in PICTURES:
            return cls.IMAGE
        kind = KINDS.get(path.suffix.lower())
        return cls.TEXT if kind is cls.LINES and in_folder else kind

    @property
    def is_text(self) -> bool:
        """Whether it is characters, whose encoding matters."""
        return self not in {FileKind.PARQUET, FileKind.HTML, FileKind.WORD, FileKind.PDF, FileKind.IMAGE}

    @property
    def missing(self) -> str | None:
        """What has to be installed to read it; None if all is there."""
        needed = {FileKind.PARQUET: ("pyarrow", "parquet")}
        needed |= {FileKind.HTML: ("markdownify", "documents"), FileKind.WORD: ("mammoth", "documents")}
        needed |= {FileKind.PDF: ("pypdf", "documents")}
        module, extra = needed.get(self, (None, None))
        if module is None or find_spec(module) is not None:
            return None
        return f"needs {module}: pip install 'ssmoe-embed[{extra}]'"


KINDS = {
    ".txt": FileKind.LINES,
    ".jsonl": FileKind.JSON_LINES,
    ".ndjson": FileKind.JSON_LINES,
    ".csv": FileKind.TABLE,
    ".tsv": FileKind.TABLE,
    ".parquet": FileKind.PARQUET,
    ".md": FileKind.MARKDOWN,
    ".markdown": FileKind.MARKDOWN,
    ".html": FileKind.HTML,
    ".htm": FileKind.HTML,
    ".docx": FileKind.WORD,
    ".pdf": FileKind.PDF,
}
"""The kind of file of each ending, pictures left out."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings of pictures."""


_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=\D)(?=\d)")


def read_picture(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """The one record of a picture, which is looked at now, so that a broken one is told of before anything is encoded.

    Raises:
        ImageError: It cannot be read.
    """
    from ssmoe_embed.vision.inputs import read_image

    del options
    image = read_image(path)
    where = path.resolve().as_posix()
    metadata = {
        "path": path.as_posix(),
        "width": image.width,
        "height": image.height,
        "image": {"path": where, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    words = " ".join(part for part in _BETWEEN_WORDS.split(path.stem) if part)
    moved(path.stat().st_size)
    given = {"id": where, "title": path.name, "source": path.as_posix()}
    yield Record("", words or path.name, given, metadata)
