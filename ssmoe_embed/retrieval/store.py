"""The database of an index: ids, texts, metadata, and which vector belongs to which text.

A change belongs to a generation: a document is seen from the generation that added it until the one that removed it. A
writer works on the generation after the published one, so nobody sees its changes before the manifest names that
generation, and an interrupted writer's are taken back by the next one. What it encoded stays: `vectors` says which texts
have a vector already.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ssmoe_embed.retrieval.documents import Document
from ssmoe_embed.retrieval.errors import DamagedIndexError

_NEVER = 2**62
"""The generation that removes what is still there."""
_AT_ONCE = 500
"""Values in one query; older SQLite takes 999."""
_BUSY_SECONDS = 30.0
_FILTERED = ("source",)
"""Fields of a document that can be filtered by like metadata."""

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS vectors (content BLOB PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (first INTEGER PRIMARY KEY, rows INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, row INTEGER NOT NULL, added INTEGER NOT NULL, removed INTEGER NOT NULL,
    title TEXT, source TEXT, text TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS current ON documents (id) WHERE removed = {_NEVER};
CREATE INDEX IF NOT EXISTS by_id ON documents (id);
CREATE INDEX IF NOT EXISTS by_row ON documents (row);
CREATE INDEX IF NOT EXISTS visible ON documents (removed, added, row);
CREATE TABLE IF NOT EXISTS facets (
    key TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (key, value, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS generations (generation INTEGER PRIMARY KEY, documents INTEGER NOT NULL, rows INTEGER NOT NULL);
"""
_SEEN = "added <= ? AND removed > ?"
_FIELDS = "id, text, metadata, title, source"

ResultT = TypeVar("ResultT")


class Store:
    """One connection to the database; threads may share it."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open the database, and make it if it is to be written to and is not there.

        Raises:
            DamagedIndexError: It is missing, or is no database.
        """
        self.path = path
        self._lock = threading.RLock()
        if not writable and not path.is_file():
            raise DamagedIndexError(f"{path} is missing; copy the index again, or index the corpus anew.")
        address = path.absolute().as_uri() + ("" if writable else "?mode=ro")
        with self._errors():
            self._db = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)
            self._db.isolation_level = None  # transactions begin and end where this file says so
            if writable:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    # --- reading: everything is as of one generation --------------------------------------------------------------------

    def published(self, generation: int) -> tuple[int, int] | None:
        """Documents and rows that the generation was published with."""
        return self._one("SELECT documents, rows FROM generations WHERE generation = ?", (generation,))

    def count(self, generation: int) -> int:
        """How many documents there are."""
        return int(self._one(f"SELECT count(*) FROM documents WHERE {_SEEN}", (generation, generation))[0])

    def live_rows(self, generation: int) -> np.ndarray[Any, Any]:
        """Rows whose vectors belong to a document, ascending int64."""
        query = f"SELECT DISTINCT row FROM documents WHERE {_SEEN} ORDER BY row"
        return self._column(query, (generation, generation))

    def documents(self, generation: int, offset: int = 0, limit: int | None = None) -> list[Document]:
        """Documents in the order in which they were added."""
        query = f"SELECT {_FIELDS} FROM documents WHERE {_SEEN} ORDER BY seq LIMIT ? OFFSET ?"
        bounds = (generation, generation, -1 if limit is None else limit, offset)
        return [_document(found) for found in self._all(query, bounds)]

    def document_rows(self, generation: int) -> np.ndarray[Any, Any]:
        """The row of each document's vector in the order of `documents`, int64."""
        return self._column(f"SELECT row FROM documents WHERE {_SEEN} ORDER BY seq", (generation, generation))

    def stream(self, generation: int, size: int = 4096) -> Iterator[list[tuple[int, int, Document]]]:
        """All documents, `(seq, row, document)`, so many at a time."""
        last = -1
        query = f"SELECT seq, row, {_FIELDS} FROM documents WHERE {_SEEN} AND seq > ? ORDER BY seq LIMIT {size}"
        while found := self._all(query, (generation, generation, last)):
            yield [(seq, row, _document(rest)) for seq, row, *rest in found]
            last = found[-1][0]

    def by_ids(self, generation: int, ids: Sequence[str]) -> dict[str, tuple[int, Document]]:
        """Row and document of each id that is there."""
        query = f"SELECT id, row, {_FIELDS} FROM documents WHERE {_SEEN} AND id IN (%s)"
        found = self._many(query, (generation, generation), ids)
        return {name: (row, _document(rest)) for name, row, *rest in found}

    def by_seqs(self, seqs: Sequence[int]) -> dict[int, tuple[int, Document]]:
        """Row and document of each sequence number."""
        found = self._many(f"SELECT seq, row, {_FIELDS} FROM documents WHERE seq IN (%s)", (), seqs)
        return {seq: (row, _document(rest)) for seq, row, *rest in found}

    def of_rows(
        self, generation: int, rows: Sequence[int], filters: Mapping[str, Any] | None = None
    ) -> dict[int, list[tuple[int, Document]]]:
        """For each row the documents `(seq, document)` that have its vector and pass the filters."""
        condition, values = _conditions(filters)
        query = f"SELECT row, seq, {_FIELDS} FROM documents WHERE {_SEEN}{condition} AND row IN (%s) ORDER BY seq"
        groups: dict[int, list[tuple[int, Document]]] = {}
        for row, seq, *rest in self._many(query, (generation, generation, *values), rows):
            groups.setdefault(row, []).append((seq, _document(rest)))
        return groups

    def passing(self, generation: int, filters: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """Rows with a document that passes the filters, ascending int64."""
        condition, values = _conditions(filters)
        query = f"SELECT DISTINCT row FROM documents WHERE {_SEEN}{condition} ORDER BY row"
        return self._column(query, (generation, generation, *values))

    def passing_seqs(self, generation: int, filters: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """Sequence numbers of the documents that pass the filters, ascending int64."""
        condition, values = _conditions(filters)
        query = f"SELECT seq FROM documents WHERE {_SEEN}{condition} ORDER BY seq"
        return self._column(query, (generation, generation, *values))

    def facet_keys(self) -> list[str]:
        """What can be filtered by."""
        return [key for (key,) in self._all("SELECT DISTINCT key FROM facets ORDER BY key", ())]

    def chunks(self) -> list[tuple[int, int, int]]:
        """First row, number of rows and CRC-32 of every block of vectors that was written."""
        return self._all("SELECT first, rows, crc FROM chunks ORDER BY first", ())

    def problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        return [line for (line,) in self._all("PRAGMA quick_check", ()) if line != "ok"]

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's changes or none."""
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk ends it by itself
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def take_back(self, generation: int) -> None:
        """Undo what an interrupted writer did after the published generation; its vectors stay."""
        with self.transaction():
            self._db.execute(
                "DELETE FROM facets WHERE seq IN (SELECT seq FROM documents WHERE added > ?)", (generation,)
            )
            self._db.execute("DELETE FROM documents WHERE added > ?", (generation,))
            query = f"UPDATE documents SET removed = {_NEVER} WHERE removed > ? AND removed < {_NEVER}"
            self._db.execute(query, (generation,))
            self._db.execute("DELETE FROM generations WHERE generation > ?", (generation,))

    def next_row(self) -> int:
        """Where the next vector goes."""
        return int(self._one("SELECT coalesce(max(first + rows), 0) FROM chunks", ())[0])

    def known(self, contents: Sequence[bytes]) -> dict[bytes, int]:
        """Rows of the texts that have a vector."""
        return dict(self._many("SELECT content, row FROM vectors WHERE content IN (%s)", (), contents))

    def add_vectors(self, contents: Sequence[bytes], first: int, crc: int) -> None:
        """Note which rows hold the vectors of new texts; within a transaction."""
        rows = [(content, first + offset) for offset, content in enumerate(contents)]
        self._db.executemany("INSERT INTO vectors (content, row) VALUES (?, ?)", rows)
        self._db.execute("INSERT INTO chunks (first, rows, crc) VALUES (?, ?, ?)", (first, len(contents), crc))

    def insert(self, generation: int, documents: Iterable[tuple[Document, int]]) -> None:
        """Add documents with their rows; within a transaction, after those of the same id were removed."""
        query = f"INSERT INTO documents (row, added, removed, {_FIELDS}) VALUES (?, ?, {_NEVER}, ?, ?, ?, ?, ?)"
        facets: list[tuple[str, str, int]] = []
        for document, row in documents:
            metadata = json.dumps(dict(document.metadata), ensure_ascii=False, sort_keys=True)
            fields = (document.id, document.text, metadata, document.title, document.source)
            seq = self._db.execute(query, (row, generation, *fields)).lastrowid or 0
            facets += [(key, value, seq) for key, value in _facets(document)]
        self._db.executemany("INSERT OR IGNORE INTO facets (key, value, seq) VALUES (?, ?, ?)", facets)

    def remove(self, generation: int, ids: Sequence[str]) -> int:
        """Remove documents; within a transaction. Returns how many there were."""
        count = 0
        for part in _parts(ids):
            marks = ",".join("?" * len(part))
            own = f"SELECT seq FROM documents WHERE added = {generation} AND removed = {_NEVER} AND id IN ({marks})"
            self._db.execute(f"DELETE FROM facets WHERE seq IN ({own})", part)  # nobody has seen these documents
            count += self._db.execute(f"DELETE FROM documents WHERE seq IN ({own})", part).rowcount
            query = f"UPDATE documents SET removed = {generation} WHERE removed = {_NEVER} AND id IN ({marks})"
            count += self._db.execute(query, part).rowcount
        return count

    def see(self, ids: Iterable[str]) -> None:
        """Note that these ids are still wanted, for `remove_unseen`; within a transaction."""
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.executemany("INSERT OR IGNORE INTO seen (id) VALUES (?)", ((name,) for name in ids))

    def remove_unseen(self, generation: int) -> int:
        """Remove all documents whose ids were not seen; within a transaction. Returns how many there were."""
        self.see(())
        query = (
            f"UPDATE documents SET removed = {generation} WHERE removed = {_NEVER} AND id NOT IN (SELECT id FROM seen)"
        )
        return self._db.execute(query).rowcount

    def publish(self, generation: int, documents: int, rows: int) -> None:
        """Note what the generation consists of, for readers to compare with the manifest."""
        with self.transaction():
            query = "INSERT OR REPLACE INTO generations (generation, documents, rows) VALUES (?, ?, ?)"
            self._db.execute(query, (generation, documents, rows))

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _all(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._lock, self._errors():
            return self._db.execute(query, values).fetchall()

    def _one(self, query: str, values: Sequence[Any]) -> Any:
        with self._lock, self._errors():
            return self._db.execute(query, values).fetchone()

    def _column(self, query: str, values: Sequence[Any]) -> np.ndarray[Any, Any]:
        with self._lock, self._errors():
            return np.fromiter((value for (value,) in self._db.execute(query, values)), dtype=np.int64)

    def _many(self, query: str, values: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
        """A query with a list of any length in place of its `%s`."""
        found: list[Any] = []
        for part in _parts(wanted):
            found += self._all(query % ",".join("?" * len(part)), (*values, *part))
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as this package's, with the file's name."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}; nothing was lost of what was published before.") from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise DamagedIndexError(
                f"{self.path} is truncated or corrupted ({error}); copy the index again, or index the corpus anew."
            ) from error


def facet_value(value: Any) -> str:
    """A metadata value as filters compare it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _facets(document: Document) -> Iterator[tuple[str, str]]:
    """Keys and values that the document can be filtered by; each element of a list is one."""
    fields = {name: getattr(document, name) for name in _FILTERED}
    for key, value in {**fields, **document.metadata}.items():
        for single in value if isinstance(value, list | tuple) else [value]:
            if isinstance(single, str | int | float):
                yield key, facet_value(single)


def _conditions(filters: Mapping[str, Any] | None) -> tuple[str, list[Any]]:
    """SQL that documents must meet: for each key one of the given values."""
    condition, values = "", []
    for key, wanted in (filters or {}).items():
        allowed = [facet_value(value) for value in (wanted if isinstance(wanted, list | tuple | set) else [wanted])]
        marks = ",".join("?" * len(allowed))
        condition += f" AND seq IN (SELECT seq FROM facets WHERE key = ? AND value IN ({marks}))"
        values += [key, *allowed]
    return condition, values


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def _document(fields: Sequence[Any]) -> Document:
    name, text, metadata, title, source = fields
    return Document(name, text, json.loads(metadata), title, source)
