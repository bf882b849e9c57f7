"""Cutting text and Markdown files into passages, by headings and paragraphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

WORDS = 120
"""How many words a passage has at most, unless told otherwise."""
BREADCRUMB = " › "
"""What stands between a heading and the one below it."""


@dataclass(frozen=True)
class Passage:
    """Some lines of a file.

    Attributes:
        text: The lines.
        heading: The Markdown headings above them, from the highest, if any.
        first: Number of the first line, from 1.
        last: Number of the last line.
        part: Which piece of its line it is, from 1, where one line is too long for a passage.
    """

    text: str
    heading: str | None
    first: int
    last: int
    part: int = 1

    @property
    def place(self) -> str:
        """Its lines, and which piece of one."""
        return f"{self.first}-{self.last}" + (f"#{self.part}" if self.part > 1 else "")


@dataclass(frozen=True)
class _Layout:
    """Where in a Markdown file headings and code are; lines count from 1.

    Attributes:
        headings: For the lines of a heading all headings from the highest to it, joined; None where it has no words.
        code: The lines of fenced code, which blank lines do not divide.
    """

    headings: dict[int, str | None] = field(default_factory=dict)
    code: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, text: str) -> _Layout:
        """As markdown-it reads a text."""
        from markdown_it import MarkdownIt

        layout, above = cls(), dict[int, str]()
        tokens = MarkdownIt("commonmark").disable(["inline", "text_join"]).parse(text)
        for token, following in zip(tokens, tokens[1:] + tokens[-1:], strict=True):
            if token.map is None or token.level:
                continue
            lines = range(token.map[0] + 1, token.map[1] + 1)
            if token.type == "fence":
                layout.code.update(lines)
            elif token.type == "heading_open":
                level = int(token.tag[1:])
                above = {other: title for other, title in above.items() if other < level}
                title = " ".join(following.content.replace("`", "").replace("**", "").split())
                if title:
                    above[level] = title
                layout.headings.update(dict.fromkeys(lines, BREADCRUMB.join(above.values()) or None))
        return layout


def split_passages(lines: Iterable[str], words: int = WORDS, *, markdown: bool = False) -> Iterator[Passage]:
    """Cut lines into passages: whole paragraphs below one heading, as many as fit.

    Args:
        lines: The lines of a file; those of plain text are read as they are needed.
        words: How many words a passage has at most. A longer paragraph is cut between lines, a longer line between words.
        markdown: Look for headings and fenced code.
    """
    layout = _Layout()
    if markdown:
        lines = [line.rstrip("\n") for line in lines]
        layout = _Layout.of("\n".join(lines))
    for heading, paragraphs in groupby(_paragraphs(lines, words, layout), key=lambda pair: pair[1]):
        kept: list[tuple[int, str]] = []
        size = 0
        for paragraph, _ in paragraphs:
            length = sum(len(line.split()) for _, line in paragraph)
            if kept and size + length > words:
                yield from _passages(kept, heading, words)
                kept, size = [], 0
            kept += paragraph
            size += length
        yield from _passages(kept, heading, words)


def _paragraphs(
    lines: Iterable[str], words: int, layout: _Layout
) -> Iterator[tuple[list[tuple[int, str]], str | None]]:
    """Paragraphs as numbered lines, or pieces of them that fit, each with the heading above it."""
    heading: str | None = None
    found: list[tuple[int, str]] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        line = line.rstrip()
        length = len(line.split())
        blank = not line and number not in layout.code
        if found and (number in layout.headings or blank or size + length > words):
            yield found, heading
            found, size = [], 0
        if number in layout.headings:
            heading = layout.headings[number]
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
