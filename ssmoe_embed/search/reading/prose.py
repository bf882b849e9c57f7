"""Running text as records: passages of plain text, Markdown, HTML, docx and PDF, cut by headings and paragraphs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import groupby
from pathlib import Path
from typing import Any

from ssmoe_embed.search.reading.records import WORDS, Moved, ReadOptions, Record, fault_of, numbered, open_text

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


def read_plain_text(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """Passages of a text without headings, which is read as it is needed."""
    faults: list[Record] = []
    with open_text(path, options.encoding) as text:
        for record in _cut(_sound(text, faults, moved), {}, options, markdown=False):
            yield from _taken(faults)
            yield record
    yield from _taken(faults)


def read_markdown(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """Passages below the headings of a Markdown file; YAML front matter is their metadata."""
    faults: list[Record] = []
    with open_text(path, options.encoding) as text:
        lines = list(_sound(text, faults, moved))
    metadata = _front_matter(lines)
    yield from faults
    yield from _cut(lines, metadata, options)


def _sound(text: TextIOWrapper, faults: list[Record], moved: Moved) -> Iterator[str]:
    """The lines of a text, those that are broken left empty and told of."""
    for number, line in numbered(text, moved):
        fault = fault_of(line)
        if fault:
            faults.append(Record(str(number), fault=fault))
        yield "" if fault else line


def _taken(faults: list[Record]) -> list[Record]:
    taken, faults[:] = list(faults), []
    return taken


def _front_matter(lines: list[str]) -> dict[str, Any]:
    """The YAML between two lines of `---` at the beginning, which is emptied; nothing where there is none."""
    import yaml

    if not lines or lines[0].rstrip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() in {"---", "..."}), None)
    if end is None:
        return {}
    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
        found = json.loads(json.dumps(found, default=str, allow_nan=False))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    lines[: end + 1] = [""] * (end + 1)
    return {str(key): value for key, value in found.items() if value is not None}


def _cut(
    lines: Iterable[str], metadata: Mapping[str, Any], options: ReadOptions, *, markdown: bool = True, page: int = 0
) -> Iterator[Record]:
    """Passages as records, with their lines, or of converted files with their page or their number."""
    known = {key: value for key, value in metadata.items() if key not in {"id", "title"}}
    above = str(metadata["title"]) if metadata.get("title") else None
    for passage in split_passages(lines, options.words, markdown=markdown):
        if passage.text.strip():
            where = {"page": page} if page else {"first_line": passage.first, "last_line": passage.last}
            place = f"p{page}:{passage.place}" if page else passage.place
            title = passage.heading or above
            if above and passage.heading and not f"{title}{BREADCRUMB}".startswith(f"{above}{BREADCRUMB}"):
                title = f"{above}{BREADCRUMB}{title}"
            yield Record(place, passage.text, {"title": title}, known | where)


def read_html(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """Passages below the headings of a page."""
    yield from _page(path.read_bytes(), options)
    moved(path.stat().st_size)


def _page(content: bytes | str, options: ReadOptions) -> Iterator[Record]:
    """The passages of an HTML page, which is made Markdown."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(content, "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title else None
    for element in soup(["script", "style", "template", "noscript", "nav", "title"]):
        element.decompose()
    text = MarkdownConverter(heading_style="ATX", strip=["a", "img"], escape_misc=False).convert_soup(soup)
    for number, record in enumerate(_cut(text.splitlines(), {"title": title}, options), start=1):
        yield Record(str(number), record.text, record.given)


def read_word(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """Passages below the headings of a docx file.

    Raises:
        ValueError: It is no such file.
    """
    import mammoth

    try:
        with path.open("rb") as file:
            content = mammoth.convert_to_html(file).value
    except Exception as error:  # whatever a damaged archive leads to
        raise ValueError(f"{path} is no docx file or is damaged ({type(error).__name__}: {error}).") from error
    yield from _page(content, options)
    moved(path.stat().st_size)


def read_pdf(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """Passages of the text of each page.

    Raises:
        ValueError: It is no such file.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    size = path.stat().st_size
    try:
        pages = PdfReader(path).pages
        for number, page in enumerate(pages, start=1):
            lines = page.extract_text().splitlines()
            yield from _cut(lines, {}, options, markdown=False, page=number)
            moved(size * number // len(pages))
    except PyPdfError as error:
        raise ValueError(f"{path} is no PDF file, is damaged or is encrypted ({error}).") from error
