"""Entries of the dictionaries that Debian packs in the format of the DICT server (dictd)."""

import gzip
from collections.abc import Iterator
from pathlib import Path

DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def entries(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """Headword and text of each entry of ``<name>.dict.dz``, in the order of the index."""
    folder = root / "usr/share/dictd"
    data = gzip.decompress((folder / f"{name}.dict.dz").read_bytes())
    for line in (folder / f"{name}.index").read_text(encoding="utf-8").splitlines():
        fields = line.split("\t")
        headword, start, length = fields[0], _number(fields[1]), _number(fields[2])
        if not headword.startswith("00-database"):
            yield headword, data[start : start + length].decode("utf-8", errors="replace")


def paragraphs(text: str) -> list[str]:
    """Paragraphs of an entry without the headword's line, each on one line."""
    body = text.split("\n", 1)[1] if "\n" in text else ""
    return [" ".join(block.split()) for block in body.replace("\n    \n", "\n\n").split("\n\n") if block.strip()]


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value
