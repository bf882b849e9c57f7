"""Readers for the dictionaries that Debian packages carry: WordNet, Webster 1913, Jargon File, Devil's Dictionary.

Every reader yields `Entry` objects; which of them may be trained on is decided by `holdout`.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WORDNET_LICENCE = "WordNet licence"
PUBLIC_DOMAIN = "public domain"

_EXAMPLE = re.compile(r'"([^"]+)"')
_CITED = re.compile(r"^[\s;,.-]*-?-?\s*[A-Z][\w. ]*$")
_BRACKETS = re.compile(r"\[[^\[\]]{0,600}\]")
_OTHER_SOURCE = re.compile(r"\[(?:WordNet|PJC|Webster 19|Webster Suppl|Century|Syn|Stormonth)[^\[\]]*\]")
_WEBSTER, _OTHER = "\x00", "\x01"
_SENSE = re.compile(r"^\s*(?:\d+\.|\([a-z]\))\s*")
_BRACES = re.compile(r"[{}]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Entry:
    """One sense of one dictionary.

    Attributes:
        source: the dictionary's short name.
        words: the headword, or all lemmas of a synset.
        gloss: the definition.
        examples: sentences that show the word in use.
    """

    source: str
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...] = field(default=())


def squeeze(text: str) -> str:
    """Turn every run of white space into one space."""
    return _SPACE.sub(" ", text).strip()


def _read_gzip(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as stream:
        return stream.read()


def read_wordnet(root: Path) -> Iterator[Entry]:
    """Yield one entry per WordNet synset (package `wordnet-base`)."""
    for part in ("noun", "verb", "adj", "adv"):
        with (root / "usr/share/wordnet" / f"data.{part}").open(encoding="utf-8") as stream:
            for line in stream:
                if not line.startswith("  "):
                    yield _parse_synset(line)


def _parse_synset(line: str) -> Entry:
    data, _, text = line.partition(" | ")
    fields = data.split()
    count = int(fields[3], 16)
    lemmas = tuple(fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(count))
    examples = tuple(example for match in _EXAMPLE.findall(text) if len(example := squeeze(match)) > 2)
    pieces = (piece.strip(" ;\n") for piece in _EXAMPLE.sub("", text).split(";"))
    gloss = "; ".join(piece for piece in pieces if piece and not _CITED.match(piece))
    return Entry("wordnet", lemmas, squeeze(gloss), examples)


def read_webster(root: Path) -> Iterator[Entry]:
    """Yield the senses of `dict-gcide` that it marks as taken from Webster's dictionary of 1913.

    That text is in the public domain; what GCIDE added to it (GPL, and glosses of WordNet) is left out.
    """
    text = _read_gzip(root / "usr/share/dictd/gcide.dict.dz").replace("[1913 Webster]", _WEBSTER)
    text = _OTHER_SOURCE.sub(_OTHER, text)
    for _ in range(3):  # etymologies hold further brackets
        text = _BRACKETS.sub(" ", text)
    for block in re.split(r"\n(?=[A-Za-z][^\n]*\\)", text):
        head, _, body = block.partition("\n")
        word = head.split("\\")[0].strip()
        if not word or len(word) > 60:
            continue
        for sense in body.split(_WEBSTER)[:-1]:
            gloss = _clean_sense(sense)
            if len(gloss) > 8:
                yield Entry("webster1913", (word.lower(),), gloss)


def _clean_sense(sense: str) -> str:
    """Keep the definition's own paragraph: no other source's, no cross reference or quotation."""
    paragraphs = [p for p in re.split(r"\n\s*\n", sense.strip("\n")) if p.strip()]
    paragraph = paragraphs[-1] if paragraphs else ""
    if _OTHER in paragraph or re.match(r"^\s{7,}", paragraph):
        return ""
    text = _SENSE.sub("", _SENSE.sub("", squeeze(paragraph)))
    text = re.split(r'\s(?:--|")', " " + text)[0]
    text = _BRACES.sub("", text)
    return "" if "\\" in text or re.match(r"^(See|Same as|Syn)\b", text.strip()) else squeeze(text)


def read_jargon(root: Path) -> Iterator[Entry]:
    """Yield the entries of the Jargon File (package `dict-jargon`), one per paragraph."""
    yield from _read_flush_left(_read_gzip(root / "usr/share/dictd/jargon.dict.dz"), "jargon")


def _read_flush_left(text: str, source: str) -> Iterator[Entry]:
    word = ""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip("\n").split("\n")
        if lines[0] and not lines[0].startswith(" "):
            word = lines[0].strip()
        body = squeeze(" ".join(line for line in lines if line.startswith("    ")))
        body = _BRACES.sub("", re.sub(r"\{\s*", "{", _SENSE.sub("", body)))
        if word and len(body) > 20:
            yield Entry(source, (word.lower(),), body)


def read_devil(root: Path) -> Iterator[Entry]:
    """Yield the entries of The Devil's Dictionary (package `dict-devil`)."""
    text = _read_gzip(root / "usr/share/dictd/devil.dict.dz")
    for paragraph in re.split(r"\n\s*\n", text):
        match = re.match(r"^([A-Z][A-Z' -]+), ?(?:n|v|adj|adv|p|pp|x)[.a-z ]*\s+(.*)", paragraph, re.DOTALL)
        if match:
            yield Entry("devil", (match.group(1).lower(),), _BRACES.sub("", squeeze(match.group(2))))
