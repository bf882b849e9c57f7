"""Documents from the package's own corpus or from a user's file."""

from __future__ import annotations

import json
from pathlib import Path

from ssmoe_embed.data import Document, search_corpus


def read_corpus(path: str | Path | None = None) -> list[Document]:
    """The documents to search.

    Args:
        path: A `.jsonl` file, one object a line with `text` and perhaps `id` and `title`, or any other file with one
            document a line; None for the corpus that comes with the package.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no document, or a line is not what it should be; the message names the line.
    """
    if path is None:
        return search_corpus()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no corpus file {path}.")
    parse = _from_json if path.suffix.lower() == ".jsonl" else _from_text
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        documents = [parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not documents:
        raise ValueError(f"{path} holds no document; put one on each line.")
    return documents


def _from_text(line: str, place: str) -> Document:
    return Document(id=place, title="", text=line.strip(), source=place, license="")


def _from_json(line: str, place: str) -> Document:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not valid JSON ({error.msg} at character {error.pos + 1}).") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError(f'{place} is not an object with a string under "text".')
    fields = {name: str(record.get(name) or "") for name in ("title", "source", "license")}
    return Document(id=str(record.get("id", place)), text=record["text"], **fields)
