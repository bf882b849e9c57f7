"""Running text as records: passages of plain text, Markdown, HTML, docx and PDF."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ssmoe_embed.search.reading.decoding import fault_of, numbered, open_text
from ssmoe_embed.search.reading.passages import BREADCRUMB, split_passages
from ssmoe_embed.search.reading.records import Moved, ReadOptions, Record


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
            yield Record(place, passage.text, {"title": _under(above, passage.heading)}, known | where)


def _under(above: str | None, heading: str | None) -> str | None:
    """A heading below the title of its file, once."""
    if above is None or heading is None or f"{heading}{BREADCRUMB}".startswith(f"{above}{BREADCRUMB}"):
        return heading or above
    return f"{above}{BREADCRUMB}{heading}"


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
