"""Cuts manuals in HTML into sections: a heading and the blocks of Markdown below it."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

HEADINGS = {"h1", "h2", "h3", "h4"}
BLOCKS = {"p", "pre", "li", "dt", "dd"}
SKIPPED_TAGS = {"nav", "script", "style", "head", "footer", "aside"}
SKIPPED_CLASSES = {"headerlink", "navheader", "navfooter", "sphinxsidebar", "related", "toc", "menu-title", "footnotes"}
SKIPPED_CLASSES |= {"boring", "toctree-wrapper", "refsynopsisdiv", "line-numbers", "versionadded"}
FENCE = "```"
ADMONITIONS = {"note", "tip", "caution", "warning", "important", "see also"}


@dataclass
class Section:
    """A heading and the blocks that follow it until the next one; preformatted ones are fenced."""

    title: str
    blocks: list[str] = field(default_factory=list)


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
        elif tag == "code":
            self._mark_code()

    def handle_endtag(self, tag: str) -> None:
        """End a block or a skipped element."""
        if self._skipping:
            if tag == self._skipping[0]:
                self._skipping.pop()
        elif tag == self._kind or (tag in BLOCKS and self._kind != "pre"):
            self._flush()
        elif tag == "code":
            self._mark_code()

    def handle_data(self, data: str) -> None:
        """Gather the text of the open block."""
        if not self._skipping and self._kind is not None:
            self._text.append(data)

    def close(self) -> None:
        """Finish the last block."""
        super().close()
        self._flush()

    def _mark_code(self) -> None:
        if self._kind is not None and self._kind not in HEADINGS | {"pre"}:
            self._text.append("`")

    def _flush(self) -> None:
        text, kind = "".join(self._text).replace("¶", ""), self._kind
        self._text, self._kind = [], None
        if not text.strip("` \n") or kind is None:
            return
        if kind in HEADINGS:
            title = " ".join(text.split())
            if title.lower() not in ADMONITIONS:
                self.sections.append(Section(title))
        elif self.sections:
            self.sections[-1].blocks.append(fenced(text.splitlines()) if kind == "pre" else " ".join(text.split()))


def read_sections(path: Path) -> list[Section]:
    """All sections of an HTML page."""
    parser = SectionParser()
    parser.feed(path.read_text(encoding="utf-8", errors="replace"))
    parser.close()
    for section in parser.sections:
        section.title = re.sub(r"^(Chapter |Appendix )?[\dA-Z]*(\.\d+)*\.\s+", "", section.title)
    return parser.sections


def shorten(blocks: list[str], target: int, most: int) -> str:
    """Join blocks until `target` words are reached; the one that would pass `most` words is cut and ends the text."""
    parts: list[str] = []
    words = 0
    for block in blocks:
        part = cut_code(block, most - words) if block.startswith(FENCE) else cut_prose(block, most - words)
        words += len(part.split())
        parts += [part] if part else []
        if words >= target or part != block:
            break
    return "\n\n".join(parts)


def cut_prose(text: str, most: int) -> str:
    """At most so many words, up to the end of a sentence."""
    words = text.split()
    if len(words) <= most:
        return text
    ends = [i for i, word in enumerate(words[:most], start=1) if word.endswith((".", "?", "!"))]
    return " ".join(words[: ends[-1]]) if ends else ""


def cut_code(block: str, most: int) -> str:
    """At most so many words of a fenced block, in whole lines."""
    lines = block.splitlines()[1:-1]
    while lines and len(" ".join(lines).split()) + 2 > most:
        lines.pop()
    return fenced(lines) if lines else ""


def fenced(lines: list[str]) -> str:
    """Lines of code as a block of Markdown."""
    body = "\n".join(line.rstrip() for line in lines).strip("\n")
    return f"{FENCE}\n{body}\n{FENCE}"


def without_markup(text: str) -> str:
    """The text on one line without fences and backticks."""
    return " ".join(text.replace("`", "").split())
