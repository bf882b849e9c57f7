"""Reranking: a verse of the King James Bible, to be found among verses of the World English Bible."""

import hashlib
import html
import re
import statistics
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from make_data.files import Record
from make_data.overlap import WordCosine, overlap

KING_JAMES, WORLD_ENGLISH = "engKJV2006eb", "engWEB2015eb"
QUERIES = 120
SHORTEST, LONGEST = 60, 220
"""Characters of a verse."""
MOST_SHARED = 0.2
"""Share of content words that a query and its answer may have in common; the median is 0.56, and counting words enough."""
NEAR, MISLEADING = 5, 10
"""False candidates of a query: neighbours in the text, and verses of the same book that share the most words with it."""

Place = tuple[str, int, int]
"""Book, chapter and verse."""


def verse_reranking(root: Path) -> Iterator[Record]:
    """Queries with one true and `NEAR + MISLEADING` false candidates each."""
    old, new = (
        read_verses(root / "usr/share/sword/modules/texts/ztext" / name) for name in (KING_JAMES, WORLD_ENGLISH)
    )
    aligned = _same_chapters(old, new)
    usable = [p for p in new if p[:2] in aligned and all(SHORTEST <= len(t) <= LONGEST for t in (old[p], new[p]))]
    books: dict[str, list[Place]] = defaultdict(list)
    for place in usable:
        books[place[0]].append(place)
    position = {place: i for i, place in enumerate(usable)}
    cosine = WordCosine(sorted({old[p] for p in usable} | {new[p] for p in usable}))
    for place in _spread(p for p in usable if overlap(old[p], new[p]) <= MOST_SHARED and len(books[p[0]]) > 100):
        others = [p for p in books[place[0]] if p != place and new[p] != new[place]]
        near = sorted(others, key=lambda p: abs(position[p] - position[place]))[:NEAR]
        rest = [p for p in others if p not in near]
        misleading = sorted(rest, key=lambda p: (-cosine(old[place], new[p]), p))[:MISLEADING]
        candidates = [new[p] for p in near + misleading]
        yield {"query": old[place], "positive": [new[place]], "negative": candidates}


def _spread(places: Iterable[Place]) -> list[Place]:
    """Some of the places, in an order that depends on nothing but themselves."""
    return sorted(places, key=lambda p: hashlib.sha256(repr(p).encode()).digest())[:QUERIES]


def _same_chapters(old: dict[Place, str], new: dict[Place, str]) -> set[tuple[str, int]]:
    """Chapters that both translations divide into as many verses, most of which share words."""
    chapters: dict[tuple[str, int], list[float]] = defaultdict(list)
    for place, text in new.items():
        chapters[place[:2]].append(overlap(old.get(place, ""), text))
    counts = Counter(place[:2] for place in old)
    return {
        c for c, shared in chapters.items() if counts[c] == len(shared) and statistics.median(shared) > 2 * MOST_SHARED
    }


def read_verses(folder: Path) -> dict[Place, str]:
    """The verses of a Bible in the compressed format of the SWORD library, without markup.

    Every entry of the index ``.bzv`` gives a block, and start and length in the block; ``.bzs`` gives the blocks' place in
    ``.bzz``. The entry before a chapter's first verse holds the chapter's name.
    """
    verses: dict[Place, str] = {}
    for testament in ("ot", "nt"):
        book, chapter, verse = "", 0, 0
        for entry in _entries(folder, testament):
            heading = re.search(r'<chapter [^>]*osisID="(\w+)\.(\d+)" sID', entry)
            if heading:
                book, chapter, verse = heading.group(1), int(heading.group(2)), 0
                continue
            verse += 1
            text = plain(entry)
            if book and text:
                verses[book, chapter, verse] = text
    return verses


def plain(entry: str) -> str:
    """A verse without notes, headings and tags."""
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", entry, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", "", text)).replace("¶", " ")
    return re.sub(r" (?=[,.;:!?’”)])", "", " ".join(text.split()))


def _entries(folder: Path, testament: str) -> Iterator[str]:
    blocks, index, data = ((folder / f"{testament}.{kind}").read_bytes() for kind in ("bzs", "bzv", "bzz"))
    unpacked: dict[int, bytes] = {}
    for block, start, length in struct.iter_unpack("<IIH", index):
        if block not in unpacked:
            offset, size, _ = struct.unpack_from("<III", blocks, 12 * block)
            unpacked[block] = zlib.decompress(data[offset : offset + size]) if size else b""
        yield unpacked[block][start : start + length].decode("utf-8")
