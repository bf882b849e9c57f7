"""Files of text as lines of characters, and what is no text told apart."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

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
    """A file as text; a mark at its beginning (BOM) is taken off, and says the encoding if there is one.

    Args:
        path: The file.
        encoding: That of a file without a mark.
        newline: As `open` takes it; by default every kind of line end is a line feed.
    """
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
