"""Documents out of files: lines, JSON lines, tables, folders of texts; read as they are needed."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.search.documents import Document
from ssmoe_embed.search.passages import WORDS, split_passages

_MARKDOWN = (".md", ".markdown")
_TEXTS = (".txt", *_MARKDOWN)
_BATCH = 1024
_VECTORS = "embedding"
"""Column of `ssmoe encode`'s tables that is no metadata."""
_REPORTED = 20
"""So many of the skipped lines are kept to be told of."""


class OnError(Choice):
    """What to do about a broken line."""

    STOP = "stop"
    """End with an error that names it."""
    SKIP = "skip"
    """Leave it out and count it."""


@dataclass
class Corpus:
    """Documents to iterate over, once or more often.

    Attributes:
        path: File or folder.
        size: How much there is to read, in `unit`s.
        unit: `B` or `row`.
        on_error: What to do about broken lines.
        text_field: Where a record holds its text.
        words: How many words a passage has at most.
        position: How much has been read.
        skipped: How many broken lines were left out.
        reports: The first of them, in words.
    """

    path: Path
    size: int
    unit: str
    on_error: OnError
    text_field: str
    words: int
    position: int = 0
    skipped: int = 0
    reports: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Document]:
        self.position, self.skipped, self.reports = 0, 0, []
        empty = True
        for document in _reader(self.path)(self):
            empty = False
            yield document
        if empty:
            raise ValueError(f"{self.path} holds no document; {_hint(self.path)}.")

    def broken(self, message: str) -> None:
        """Stop at a broken line, or count it.

        Raises:
            ValueError: The corpus is to be read to the letter.
        """
        if self.on_error is OnError.STOP:
            raise ValueError(f"{message} Mend it, or leave such lines out with --on-error skip.")
        self.skipped += 1
        if len(self.reports) < _REPORTED:
            self.reports.append(message)

    def document(self, place: str, record: dict[str, Any], name: str | None = None) -> Iterator[Document]:
        """The document of a record, or nothing if the record is broken.

        Args:
            place: File and line, for messages.
            record: The text, perhaps `id`, `title` and `source`, and metadata.
            name: The id of a record that has none.
        """
        text = record.get(self.text_field)
        if not isinstance(text, str) or not text.strip():
            self.broken(f"{place} has no text under {self.text_field!r}.")
            return
        given = {key: record.get(key) for key in ("id", "title", "source")}
        metadata = {
            key: value for key, value in record.items() if key not in (*given, self.text_field) and value is not None
        }
        fields = {key: str(value) for key, value in given.items() if value not in (None, "")}
        try:
            found = Document(
                fields.get("id", name or place), text, metadata, fields.get("title"), fields.get("source", place)
            )
        except ValueError as error:
            self.broken(f"{place}: {error}")
            return
        yield found


def read_documents(path: str | Path, *, on_error: str = "stop", field: str = "text", words: int = WORDS) -> Corpus:
    """Documents of a file or a folder, in memory one at a time.

    - `.txt`: a line is a document; blank lines are passed over.
    - `.jsonl`: a line is an object with the text, perhaps `id`, `title` and `source`; the rest is metadata.
    - `.csv` (with a line of names) and `.parquet`: a row is such an object.
    - `.md`, and a folder with `.txt` and `.md` files: passages by headings and paragraphs, with path and line range.

    A document without id is named by its file and line.

    Args:
        path: File or folder.
        on_error: What to do about a broken line: stop or skip.
        field: Where a record holds its text.
        words: How many words a passage has at most.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The file is of no known kind, or (while it is read) a line is broken or there is no document.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no corpus {path}.")
    if words < 1:
        raise ValueError(f"words={words} leaves nothing of a passage; choose at least 1.")
    _reader(path)
    if path.suffix.lower() == ".parquet" and path.is_file():
        size, unit = _parquet(path).metadata.num_rows, "row"
    else:
        size, unit = sum(file.stat().st_size for file in (_files(path) if path.is_dir() else [path])), "B"
    return Corpus(path, size, unit, OnError.parse(on_error, "on_error"), field, words)


def _reader(path: Path) -> Callable[[Corpus], Iterator[Document]]:
    """What reads a path."""
    if path.is_dir():
        return _folder
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _table, ".parquet": _columns}
    readers |= dict.fromkeys(_MARKDOWN, _text)
    kind = path.suffix.lower()
    if kind not in readers:
        raise ValueError(f"{path} is of no known kind; a corpus is a folder or a file ending in {', '.join(readers)}.")
    return readers[kind]


def _hint(path: Path) -> str:
    return f"put {' or '.join(_TEXTS)} files into it" if path.is_dir() else "put one on each line"


def _numbered(corpus: Corpus) -> Iterator[tuple[int, bytes]]:
    """The lines of the corpus' file that are not blank."""
    with corpus.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            corpus.position += len(line)
            if line.strip():
                yield number, line


def _lines(corpus: Corpus) -> Iterator[Document]:
    for number, line in _numbered(corpus):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()
        if text:
            place = f"{corpus.path.name}:{number}"
            yield Document(place, text, source=f"{corpus.path}:{number}")


def _json_lines(corpus: Corpus) -> Iterator[Document]:
    for number, line in _numbered(corpus):
        place = f"{corpus.path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            corpus.broken(f"{place} is not valid JSON ({_where(error)}).")
            continue
        if isinstance(record, dict):
            yield from corpus.document(place, record, f"{corpus.path.name}:{number}")
        else:
            corpus.broken(f"{place} is not an object but {type(record).__name__}.")


def _where(error: ValueError) -> str:
    """What is wrong with a line, and where in it: JSON's own message counts lines from this one."""
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)


def _table(corpus: Corpus) -> Iterator[Document]:
    csv.field_size_limit(sys.maxsize)
    with corpus.path.open("rb") as raw:
        rows = csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", "replace", newline=""), strict=True)
        if corpus.text_field not in (rows.fieldnames or ()):
            raise ValueError(_no_field(corpus, rows.fieldnames or ()))
        while True:
            place = f"{corpus.path}:{rows.line_num + 1}"
            try:
                record = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                corpus.broken(f"{place} is not valid CSV: {error}.")
                continue
            corpus.position = raw.tell()
            if None in record or None in record.values():
                corpus.broken(
                    f"{place} has another number of fields than the {len(rows.fieldnames or ())} of the first line."
                )
                continue
            record = {key: value for key, value in record.items() if value != ""}
            yield from corpus.document(place, record, f"{corpus.path.name}:{rows.line_num}")


def _columns(corpus: Corpus) -> Iterator[Document]:
    file = _parquet(corpus.path)
    names = [name for name in file.schema_arrow.names if name != _VECTORS]
    if corpus.text_field not in names:
        raise ValueError(_no_field(corpus, names))
    for batch in file.iter_batches(batch_size=_BATCH, columns=names):
        for record in batch.to_pylist():
            corpus.position += 1
            place = f"{corpus.path}:{corpus.position}"
            plain = {key: _plain(value) for key, value in record.items()}
            yield from corpus.document(place, plain, f"{corpus.path.name}:{corpus.position}")


def _plain(value: Any) -> Any:
    """A value of a table as JSON knows it."""
    return value if value is None or isinstance(value, str | int | float | bool | list | dict) else str(value)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ValueError("Reading Parquet needs pyarrow: pip install 'ssmoe-embed[parquet]'.") from None
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is truncated or no Parquet file ({error}).") from None


def _no_field(corpus: Corpus, names: Iterable[str]) -> str:
    found = ", ".join(map(repr, names)) or "nothing"
    return f"{corpus.path} has no column {corpus.text_field!r} but {found}; name the one with the text with --field."


def _files(folder: Path) -> list[Path]:
    """The text files below a folder, without hidden ones, in a fixed order."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in _TEXTS and path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _folder(corpus: Corpus) -> Iterator[Document]:
    for path in _files(corpus.path):
        yield from _passages(corpus, path, path.relative_to(corpus.path).as_posix())


def _text(corpus: Corpus) -> Iterator[Document]:
    yield from _passages(corpus, corpus.path, corpus.path.name)


def _passages(corpus: Corpus, path: Path, name: str) -> Iterator[Document]:
    """The passages of one file."""
    start = corpus.position

    def lines(file: Iterable[bytes]) -> Iterator[str]:
        for line in file:
            corpus.position += len(line)
            yield line.decode("utf-8", "replace")

    with path.open("rb") as file:
        markdown = path.suffix.lower() in _MARKDOWN
        for passage in split_passages(lines(file), corpus.words, markdown=markdown):
            if not passage.text.strip():
                continue
            place = f"{passage.first}-{passage.last}" + (f"#{passage.part}" if passage.part > 1 else "")
            where = {"path": name, "first_line": passage.first, "last_line": passage.last}
            yield Document(f"{name}:{place}", passage.text, where, passage.heading, f"{path}:{place}")
    corpus.position = start + path.stat().st_size
