"""The calibration sample: texts of many kinds and lengths, none of them held out."""

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from make_data.corpus import HERE, Manual, pages
from make_data.dictionaries import entries, paragraphs
from make_data.files import Record, read_lines
from make_data.heldout import is_held_out
from make_data.sections import read_sections, shorten, without_markup
from make_data.wordnet import WordNet

COUNTS = {
    "definition": 400,
    "example": 270,
    "words": 80,
    "python": 290,
    "postgresql": 230,
    "rust": 230,
    "jargon": 210,
    "devil": 160,
    "verse": 70,
    "line": 200,
}
"""Texts taken of each kind, at most."""
MANUALS = (
    Manual("python", "PSF-2.0", "usr/share/doc/python3.11/html", ("library/*.html", "reference/*.html")),
    Manual(
        "postgresql",
        "PostgreSQL",
        "usr/share/doc/postgresql-doc-15/html",
        ("app-*.html", "runtime-*.html", "plpgsql-*.html", "catalog-*.html", "logical*.html", "wal-*.html"),
    ),
    Manual("rust", "MIT OR Apache-2.0", "usr/share/doc/rust-doc/html", ("nomicon/*.html", "reference/*.html")),
)
MOST_WORDS = 110
LONG_ENOUGH = 25
"""Normalised characters from which a held-out definition inside another text counts as a leak."""


def calibration(root: Path, wordnet: WordNet) -> Iterator[Record]:
    """All texts, in a shuffled order that is always the same."""
    rng = random.Random(0)
    candidates = dict(wordnet_texts(wordnet))
    candidates |= {manual.name: list(manual_texts(root, manual)) for manual in MANUALS}
    candidates["jargon"] = list(dictionary_texts(root, "jargon"))
    candidates["devil"] = list(dictionary_texts(root, "devil"))
    candidates["verse"] = list(verses(root))
    candidates["line"] = [record["text"] for record in read_lines(HERE / "lines.jsonl")]
    leaks = Leaks(wordnet)
    seen: set[str] = set()
    records = []
    for kind, most in COUNTS.items():
        texts = candidates[kind]
        chosen = 0
        for text in rng.sample(texts, len(texts)):
            key = normalised(text) or text
            if chosen < most and key not in seen and not leaks.found_in(text):
                seen.add(key)
                chosen += 1
                records.append({"text": text, "source": SOURCES[kind]})
    rng.shuffle(records)
    yield from records


SOURCES = {kind: kind for kind in COUNTS}
SOURCES |= {"definition": "wordnet", "example": "wordnet", "words": "wordnet", "verse": "devil", "line": "ssmoe_embed"}


class Leaks:
    """Recognises held-out definitions and example sentences, also inside longer texts."""

    def __init__(self, wordnet: WordNet) -> None:
        texts = {normalised(t) for s in wordnet.held_out for t in (s.definition, *s.examples)}
        self.texts = texts
        self.long = sorted(t for t in texts if len(t) >= LONG_ENOUGH)

    def found_in(self, text: str) -> bool:
        """Whether a text is, or holds, something held out."""
        key = normalised(text)
        return key in self.texts or any(t in key for t in self.long)


def normalised(text: str) -> str:
    """Letters and digits only, in lower case."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def wordnet_texts(wordnet: WordNet) -> Iterator[tuple[str, list[str]]]:
    """Definitions, example sentences and lists of synonyms of synsets that are not held out."""
    open_synsets = [s for s in wordnet.synsets.values() if not s.held_out]
    yield "definition", [s.definition for s in open_synsets if len(s.definition.split()) >= 3]
    yield "example", [e for s in open_synsets for e in s.examples if len(e.split()) >= 3]
    yield "words", [", ".join(s.lemmas) for s in open_synsets if len(s.lemmas) >= 3]


def manual_texts(root: Path, manual: Manual) -> Iterator[str]:
    """Titles, single blocks and longer stretches of a manual's sections."""
    for page in pages(root, manual):
        for number, section in enumerate(read_sections(page)):
            blocks = list(cut(section.blocks))
            if number % 4 == 0 and len(section.title.split()) >= 3:
                yield section.title
            elif number % 4 == 1:
                yield from blocks[:1]
            else:
                text = without_markup(shorten(section.blocks, 30 * (number % 4), MOST_WORDS))
                yield from cut([text])


def dictionary_texts(root: Path, name: str) -> Iterator[str]:
    """Paragraphs of the entries whose headword is not held out."""
    for headword, text in entries(root, name):
        if not is_held_out(headword):
            prose = [p for p in paragraphs("\n" + text if name == "devil" else text) if not p.startswith("/")]
            yield from cut(prose[:2])


def verses(root: Path) -> Iterator[str]:
    """Stanzas of up to six lines from the Devil's Dictionary."""
    for headword, text in entries(root, "devil"):
        lines = [line.strip() for line in text.splitlines() if re.match(r" {4,}\S", line)]
        if not is_held_out(headword) and len(lines) >= 4:
            yield " ".join(" / ".join(lines[:6]).split())


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """Blocks of at least three words, shortened to whole sentences."""
    for block in blocks:
        text = without_markup(shorten([block], MOST_WORDS, MOST_WORDS))
        if len(text.split()) >= 3:
            yield text
