"""Cutting text and Markdown files into passages, by headings and paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

WORDS = 120
"""How many words a passage has at most, unless told otherwise."""
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*\s*$")
_FENCES = ("```", "~~~")


@dataclass(frozen=True)
class Passage:
    """Some lines of a file.

    Attributes:
        text: The lines.
        heading: The Markdown heading above them, if any.
        first: Number of the first line, from 1.
        last: Number of the last line.
        part: Which piece of its line it is, from 1, where one line is too long for a passage.
    """

    text: str
    heading: str | None
    first: int
    last: int
    part: int = 1


def split_passages(lines: Iterable[str], words: int = WORDS, *, markdown: bool = False) -> Iterator[Passage]:
    """Cut lines into passages: whole paragraphs below one heading, as many as fit.

    Args:
        lines: The lines of a file; they are read as they are needed.
        words: How many words a passage has at most. A longer paragraph is cut between lines, a longer line between words.
        markdown: Take lines that begin with `#` for headings.
    """
    heading: str | None = None
    kept: list[tuple[int, str]] = []
    size = 0
    for paragraph, title in _paragraphs(lines, words, markdown=markdown):
        length = sum(len(line.split()) for _, line in paragraph)
        if kept and (size + length > words or title != heading):
            yield from _passages(kept, heading, words)
            kept, size = [], 0
        heading = title
        kept += paragraph
        size += length
    yield from _passages(kept, heading, words)


def _paragraphs(
    lines: Iterable[str], words: int, *, markdown: bool
) -> Iterator[tuple[list[tuple[int, str]], str | None]]:
    """Paragraphs as numbered lines, or pieces of them that fit, each with the heading above it."""
    heading: str | None = None
    fence = False
    found: list[tuple[int, str]] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        line = line.rstrip()
        fence ^= markdown and line.lstrip().startswith(_FENCES)
        title = _HEADING.match(line) if markdown and not fence else None
        length = len(line.split())
        if found and (title or (not line and not fence) or size + length > words):
            yield found, heading
            found, size = [], 0
        if title:
            heading = title.group(1) or None
        elif line or found:
            found.append((number, line))
            size += length
    if found:
        yield found, heading


def _passages(lines: list[tuple[int, str]], heading: str | None, words: int) -> Iterator[Passage]:
    """The passage of some lines; several where a single line is too long."""
    while lines and not lines[-1][1]:
        lines = lines[:-1]
    if not lines:
        return
    first, last = lines[0][0], lines[-1][0]
    text = "\n".join(line for _, line in lines)
    pieces = text.split() if first == last else []
    if len(pieces) <= words:
        yield Passage(text, heading, first, last)
        return
    for part, start in enumerate(range(0, len(pieces), words), start=1):
        yield Passage(" ".join(pieces[start : start + words]), heading, first, last, part)
