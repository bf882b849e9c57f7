"""Cuts manuals in HTML into sections: a heading and the blocks of text below it."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

HEADINGS = {"h1", "h2", "h3", "h4"}
BLOCKS = {"p", "pre", "li", "dt", "dd"}
SKIPPED_TAGS = {"nav", "script", "style", "head", "footer", "aside"}
SKIPPED_CLASSES = {"headerlink", "navheader", "navfooter", "sphinxsidebar", "related", "toc", "menu-title", "footnotes"}
SKIPPED_CLASSES |= {"highlight-shell", "toctree-wrapper", "refsynopsisdiv", "line-numbers", "versionadded"}
ADMONITIONS = {"note", "tip", "caution", "warning", "important", "see also"}


@dataclass
class Section:
    """A heading and the blocks that follow it until the next one; `code` marks the preformatted ones."""

    title: str
    blocks: list[str] = field(default_factory=list)
    code: list[bool] = field(default_factory=list)


class SectionParser(HTMLParser):
    """Collects the sections of a page in `sections`."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[Section] = []
        self._skipping: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self._kind: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block, or skip an element that is no part of the text."""
        classes = set((dict(attrs).get("class") or "").split())
        if self._skipping:
            if tag == self._skipping[0]:
                self._skipping.append(tag)
        elif tag in SKIPPED_TAGS or classes & SKIPPED_CLASSES:
            self._skipping.append(tag)
        elif tag in HEADINGS | BLOCKS and self._kind != "pre":
            self._flush()
            self._kind = tag

    def handle_endtag(self, tag: str) -> None:
        """End a block or a skipped element."""
        if self._skipping:
            if tag == self._skipping[0]:
                self._skipping.pop()
        elif tag == self._kind or (tag in BLOCKS and self._kind != "pre"):
            self._flush()

    def handle_data(self, data: str) -> None:
        """Gather the text of the open block."""
        if not self._skipping and self._kind is not None:
            self._text.append(data)

    def close(self) -> None:
        """Finish the last block."""
        super().close()
        self._flush()

    def _flush(self) -> None:
        text, kind = "".join(self._text), self._kind
        self._text, self._kind = [], None
        text = " ".join(text.replace("¶", "").split())
        if not text or kind is None:
            return
        if kind in HEADINGS:
            if text.lower() not in ADMONITIONS:
                self.sections.append(Section(text))
        elif self.sections:
            self.sections[-1].blocks.append(text)
            self.sections[-1].code.append(kind == "pre")


def read_sections(path: Path) -> list[Section]:
    """All sections of an HTML page."""
    parser = SectionParser()
    parser.feed(path.read_text(encoding="utf-8", errors="replace"))
    parser.close()
    for section in parser.sections:
        section.title = re.sub(r"^(Chapter |Appendix )?[\dA-Z]*(\.\d+)*\.\s+", "", section.title)
    return parser.sections


def shorten(blocks: list[str], target: int, most: int) -> str:
    """Join blocks until `target` words are reached, cutting the last one at a sentence's end before `most` words."""
    words: list[str] = []
    for block in blocks:
        new = block.split()
        room = most - len(words)
        if len(new) > room:
            ends = [i for i, word in enumerate(new[:room], start=1) if word.endswith((".", "?", "!"))]
            new = new[: ends[-1]] if ends else []
        words += new
        if len(words) >= target:
            break
    return " ".join(words)
