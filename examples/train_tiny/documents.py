"""Readers for manuals and quotations: Python, PostgreSQL, SQLite, Rust, zsh and fortunes.

A document is a list of blocks in reading order; a block is a heading, a paragraph or a code sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from dictionaries import squeeze

HTML_SOURCES: dict[str, tuple[str, ...]] = {
    "postgresql": ("usr/share/doc/postgresql-doc-15/html",),
    "sqlite": ("usr/share/doc/sqlite3",),
    "zsh": ("usr/share/doc/zsh-common/html",),
    "rust": tuple(
        f"usr/share/doc/rust-doc/html/{book}"
        for book in ("book", "nomicon", "reference", "rust-by-example", "edition-guide", "rustc", "rustdoc")
    ),
}
"""Folders of HTML pages, relative to where the packages were unpacked."""

_BLOCK_TAGS = {"p", "li", "h1", "h2", "h3", "h4", "h5", "dt", "dd", "pre", "td", "th", "title", "div", "tr"}
_SKIPPED_TAGS = {"script", "style", "nav", "head"}
_ROLE = re.compile(r":[\w:+-]+:`~?!?([^`<]*?)(?:\s*<[^`>]*>)?`")
_REFERENCE = re.compile(r"`([^`<]+?)\s*(?:<[^`>]*>)?`_{1,2}")
_UNDERLINE = re.compile(r"^([=\-~^\"'*#+.])\1{2,}$")
_SIGNATURE = re.compile(r"^\.\. (?:[\w-]+:)?(?:function|method|class|data|exception|attribute|option|module)::\s*(.*)")


@dataclass(frozen=True)
class Block:
    """A piece of a document; `kind` is `heading`, `paragraph` or `code`."""

    kind: str
    text: str


@dataclass(frozen=True)
class Document:
    """One page of a manual, or one quotation."""

    source: str
    blocks: tuple[Block, ...]


class _BlockParser(HTMLParser):
    """Collect the text of block-level elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._parts: list[str] = []
        self._kind = "paragraph"
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block at block-level tags; stop listening inside scripts and navigation."""
        if tag in _SKIPPED_TAGS:
            self._skipped += 1
        elif tag in _BLOCK_TAGS:
            self.flush()
            self._kind = "heading" if tag[0] == "h" else "code" if tag == "pre" else "paragraph"

    def handle_endtag(self, tag: str) -> None:
        """End the block."""
        if tag in _SKIPPED_TAGS:
            self._skipped = max(0, self._skipped - 1)
        elif tag in _BLOCK_TAGS:
            self.flush()
            self._kind = "paragraph"

    def handle_data(self, data: str) -> None:
        """Keep text that is not skipped."""
        if not self._skipped:
            self._parts.append(data)

    def flush(self) -> None:
        """Store the block collected so far, if it says anything."""
        joined = "".join(self._parts)
        text = joined.strip("\n") if self._kind == "code" else squeeze(joined)
        if text.strip():
            self.blocks.append(Block(self._kind, text))
        self._parts.clear()


def parse_html(page: str) -> list[Block]:
    """Split an HTML page into blocks."""
    parser = _BlockParser()
    parser.feed(page)
    parser.close()
    parser.flush()
    return parser.blocks


def read_html(root: Path, source: str) -> Iterator[Document]:
    """Yield the pages of one of `HTML_SOURCES`."""
    for folder in HTML_SOURCES[source]:
        for path in sorted((root / folder).rglob("*.html")):
            if path.name in {"print.html", "toc.html"} or path.stat().st_size > 400_000:
                continue
            blocks = parse_html(path.read_text(encoding="utf-8", errors="replace"))
            if blocks:
                yield Document(source, tuple(blocks))


def strip_rst(text: str) -> str:
    """Remove the inline markup of reStructuredText."""
    text = _REFERENCE.sub(r"\1", _ROLE.sub(r"\1", text))
    return re.sub(r"(?<!\w)\*{1,2}([^*\n]+?)\*{1,2}(?!\w)", r"\1", text).replace("``", "").replace("\\ ", "")


def parse_rst(page: str) -> list[Block]:
    """Split a reStructuredText page into blocks; directives that are not signatures are dropped."""
    blocks: list[Block] = []
    for raw in re.split(r"\n\s*\n", page):
        lines = raw.strip("\n").split("\n")
        if len(lines) >= 2 and _UNDERLINE.match(lines[-1].strip()):
            blocks.append(Block("heading", squeeze(strip_rst(lines[-2]))))
            continue
        signature = _SIGNATURE.match(lines[0].strip())
        if signature:
            blocks.append(Block("code", squeeze(strip_rst(signature.group(1)))))
        elif not lines[0].strip().startswith((".. ", "::", ":", "+-", "|", "==")):
            is_code = lines[0].startswith("    ") and bool(re.search(r"[=({>]|^\s*(import|def|class) ", raw))
            text = "\n".join(lines) if is_code else squeeze(strip_rst(raw))
            blocks.append(Block("code" if is_code else "paragraph", text.replace("::", ":") if not is_code else text))
    return [block for block in blocks if block.text.strip()]


def read_python(root: Path) -> Iterator[Document]:
    """Yield the pages of the Python manual (package `python3.11-doc`)."""
    for path in sorted((root / "usr/share/doc/python3.11/html/_sources").rglob("*.rst.txt")):
        yield Document("python", tuple(parse_rst(path.read_text(encoding="utf-8"))))


def read_fortunes(root: Path) -> Iterator[Document]:
    """Yield the quotations of the package `fortunes`, without ASCII art and translation puzzles."""
    for path in sorted((root / "usr/share/games/fortunes").iterdir()):
        if "." in path.name or path.name in {"art", "ascii-art", "translate-me"} or not path.is_file():
            continue
        for quote in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            text = squeeze(re.split(r"\n\s*--", quote)[0])
            if len(text) > 10:
                yield Document("fortunes", (Block("paragraph", text),))


def read_documents(root: Path) -> Iterator[Document]:
    """Yield every document in a fixed order."""
    yield from read_python(root)
    for source in HTML_SOURCES:
        yield from read_html(root, source)
    yield from read_fortunes(root)
