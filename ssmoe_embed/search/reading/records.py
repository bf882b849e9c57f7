"""What files are read as: records, each a text with what is known of it, or what is wrong with it; and lines of text."""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

from ssmoe_embed.common.choices import Choice

WORDS = 120
"""How many words a passage has at most, unless told otherwise."""
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins with that of UTF-16, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UNDECODABLE = "\udc80"
"""What stands for bytes that are no characters of the encoding; no encoding gives it."""
_HEAD = 8192

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
        fault: What is wrong with it; then nothing else counts.
    """

    place: str
    text: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


class OnError(Choice):
    """What to do about a broken line."""

    STOP = "stop"
    """End with an error that names it."""
    SKIP = "skip"
    """Leave it out and count it."""


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
        """The kind that a file's name says, if it says one.

        A text file that was found in a folder is passages; one that was named itself, a text a line.
        """
        if path.suffix.lower() in PICTURES:
            return cls.IMAGE
        kind = KINDS.get(path.suffix.lower())
        return cls.TEXT if kind is cls.LINES and in_folder else kind

    @property
    def is_text(self) -> bool:
        """Whether it is characters, whose encoding matters."""
        return self in {FileKind.LINES, FileKind.JSON_LINES, FileKind.TABLE, FileKind.TEXT, FileKind.MARKDOWN}

    @property
    def missing(self) -> str | None:
        """What has to be installed to read it; None if all is there."""
        module, extra = {
            FileKind.PARQUET: ("pyarrow", "parquet"),
            FileKind.HTML: ("markdownify", "documents"),
            FileKind.WORD: ("mammoth", "documents"),
            FileKind.PDF: ("pypdf", "documents"),
        }.get(self, (None, None))
        if module is None or find_spec(module) is not None:
            return None
        return f"needs {module}: pip install 'ssmoe-embed[{extra}]'"

    def check(self) -> None:
        """Make sure that it can be read.

        Raises:
            ValueError: A package that it needs is not installed.
        """
        if self.missing:
            raise ValueError(f"Reading {self} files {self.missing}.")


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


def known_encoding(name: str) -> str:
    """An encoding's name.

    Raises:
        ValueError: Python knows no text encoding of that name.
    """
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(
            f"encoding={name!r} is not known; give one such as utf-8, latin-1, cp1252, utf-16 or shift_jis."
        ) from None
    return name


@contextmanager
def open_text(path: Path, encoding: str, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """A file as text, as `open` does; a mark at its beginning (BOM) is taken off and says the encoding instead."""
    with path.open("rb") as raw, decoded(raw, encoding, newline) as text:
        yield text


@contextmanager
def decoded(stream: IO[bytes], encoding: str, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """A stream of bytes as text, as `open_text`; the stream is left open."""
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream)  # type: ignore[type-var]
    head = buffered.peek(4)[:4]
    found = next((name for bom, name in _BOMS.items() if head.startswith(bom)), encoding)
    text = io.TextIOWrapper(buffered, found, errors="ssmoe-mark", newline=newline)
    try:
        yield text
    finally:
        text.detach()


def fault_of(line: str) -> str | None:
    """What keeps a line from being text, in words; None if nothing does."""
    if UNDECODABLE in line:
        return "has bytes that are no characters of its encoding; name the right one with --encoding"
    if "\0" in line:
        return (
            "has NUL characters, as binary files have, and UTF-16 without its mark; name that with --encoding utf-16-le"
        )
    return None


def numbered(text: io.TextIOWrapper, moved: Callable[[int], None] = lambda _: None) -> Iterator[tuple[int, str]]:
    """The lines of a text, counted from 1, without their ends."""
    for number, line in enumerate(text, start=1):
        moved(position(text))
        yield number, line.rstrip("\n")


def position(text: io.TextIOWrapper) -> int:
    """How many bytes have been read of what a text is decoded from; 0 of a pipe, which does not know."""
    raw = cast("Any", text.buffer)
    return int(raw.tell()) if raw.seekable() else 0


def is_binary(path: Path) -> bool:
    """Whether a file begins like one that is no text: with NULs and without a mark of UTF-16 or UTF-32."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return b"\0" in head and not any(head.startswith(bom) for bom in _BOMS)


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Put a mark in place of bytes that cannot be decoded, which are told of by line."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return UNDECODABLE, error.end


codecs.register_error("ssmoe-mark", _mark)
