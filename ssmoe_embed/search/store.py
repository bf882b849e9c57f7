"""The database of an index: ids, texts, metadata, and which vector belongs to which text.

A change belongs to a generation: a document is seen from the generation that added it until the one that removed it. A
writer works on the generation after the published one, so nobody sees its changes before the manifest names that
generation, and an interrupted writer's are taken back by the next one. What it encoded stays: `vectors` says which texts
have a vector already.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ssmoe_embed.data import Document
from ssmoe_embed.search.filters import ID, conditions_sql
from ssmoe_embed.search.manifest import RECOVERY, UNHARMED, DamagedIndexError

NEVER = 2**62
"""The generation that removes what is still there."""
_AT_ONCE = 500
"""Values in one query; older SQLite takes 999."""
_BUSY_SECONDS = 30.0

_SEEN = "added <= ? AND removed > ?"
FIELDS = "id, text, metadata, title, source"

ResultT = TypeVar("ResultT")


class Store:
    """One connection to the database; threads may share it."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open the database; `WritableStore` opens it to write.

        Raises:
            DamagedIndexError: It is missing, or is no database.
        """
        self.path = path
        self.lock = threading.RLock()
        if not writable and not path.is_file():
            raise DamagedIndexError(f"{path} is missing; {RECOVERY}.")
        # where SQLite cannot put files beside it, it must know that nothing changes; but then it does not look at its log
        frozen = not writable and not os.access(path.parent, os.W_OK) and not _has_log(path)
        address = path.absolute().as_uri() + ("" if writable else "?immutable=1" if frozen else "?mode=ro")
        with self.errors():
            self.db = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)
            self.db.isolation_level = None  # transactions begin and end where this file says so

    def close(self) -> None:
        """Let go of the file."""
        with self.lock:
            self.db.close()

    # --- reading: everything is as of one generation --------------------------------------------------------------------

    def published(self, generation: int) -> tuple[int, int] | None:
        """Documents and rows that the generation was published with."""
        return self._one("SELECT documents, rows FROM generations WHERE generation = ?", (generation,))

    def count(self, generation: int) -> int:
        """How many documents there are."""
        return int(self._one(f"SELECT count(*) FROM documents WHERE {_SEEN}", (generation, generation))[0])

    def held(self) -> int:
        """How many documents are on disk, removed ones that an older generation may still show included."""
        return int(self._one("SELECT count(*) FROM documents", ())[0])

    def live_rows(self, generation: int) -> np.ndarray[Any, Any]:
        """Rows whose vectors belong to a document, ascending int64."""
        query = f"SELECT DISTINCT row FROM documents WHERE {_SEEN} ORDER BY row"
        return self._column(query, (generation, generation))

    def documents(self, generation: int, offset: int = 0, limit: int | None = None) -> list[Document]:
        """Documents in the order in which they were added."""
        query = f"SELECT {FIELDS} FROM documents WHERE {_SEEN} ORDER BY seq LIMIT ? OFFSET ?"
        bounds = (generation, generation, -1 if limit is None else limit, offset)
        return [document_of(found) for found in self._all(query, bounds)]

    def document_rows(self, generation: int) -> np.ndarray[Any, Any]:
        """The row of each document's vector in the order of `documents`, int64."""
        return self._column(f"SELECT row FROM documents WHERE {_SEEN} ORDER BY seq", (generation, generation))

    def stream(self, generation: int, size: int = 4096) -> Iterator[list[tuple[int, int, Document]]]:
        """All documents, `(seq, row, document)`, so many at a time."""
        last = -1
        query = f"SELECT seq, row, {FIELDS} FROM documents WHERE {_SEEN} AND seq > ? ORDER BY seq LIMIT {size}"
        while found := self._all(query, (generation, generation, last)):
            yield [(seq, row, document_of(rest)) for seq, row, *rest in found]
            last = found[-1][0]

    def by_ids(self, generation: int, ids: Sequence[str]) -> dict[str, tuple[int, Document]]:
        """Row and document of each id that is there."""
        query = f"SELECT id, row, {FIELDS} FROM documents WHERE {_SEEN} AND id IN (%s)"
        found = self._many(query, (generation, generation), ids)
        return {name: (row, document_of(rest)) for name, row, *rest in found}

    def by_seqs(self, seqs: Sequence[int]) -> dict[int, tuple[int, Document]]:
        """Row and document of each sequence number."""
        found = self._many(f"SELECT seq, row, {FIELDS} FROM documents WHERE seq IN (%s)", (), seqs)
        return {seq: (row, document_of(rest)) for seq, row, *rest in found}

    def of_rows(
        self, generation: int, rows: Sequence[int], filters: Mapping[str, Any] | None = None
    ) -> dict[int, list[tuple[int, Document]]]:
        """For each row the documents `(seq, document)` that have its vector and pass the filters."""
        condition, values = conditions_sql(filters)
        query = f"SELECT row, seq, {FIELDS} FROM documents WHERE {_SEEN}{condition} AND row IN (%s) ORDER BY seq"
        groups: dict[int, list[tuple[int, Document]]] = {}
        for row, seq, *rest in self._many(query, (generation, generation, *values), rows):
            groups.setdefault(row, []).append((seq, document_of(rest)))
        return groups

    def passing(self, generation: int, filters: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """Rows with a document that passes the filters, ascending int64."""
        condition, values = conditions_sql(filters)
        query = f"SELECT DISTINCT row FROM documents WHERE {_SEEN}{condition} ORDER BY row"
        return self._column(query, (generation, generation, *values))

    def ids(self, generation: int, filters: Mapping[str, Any]) -> list[str]:
        """Ids of the documents that pass the filters, in the order in which they were added."""
        condition, values = conditions_sql(filters)
        query = f"SELECT id FROM documents WHERE {_SEEN}{condition} ORDER BY seq"
        return [name for (name,) in self._all(query, (generation, generation, *values))]

    # --- words: the statistics are those of all documents on disk, removed ones included until the index is compacted ---

    def count_word(self, word: str) -> int:
        """How many documents on disk have a word."""
        return int(self._one("SELECT count(*) FROM words WHERE words MATCH ?", (word,))[0])

    def matching(
        self,
        generation: int,
        words: str,
        limit: int,
        *,
        title: float = 1.0,
        unseen: int = 0,
        filters: Mapping[str, Any] | None = None,
    ) -> list[tuple[int, float]]:
        """Sequence numbers and BM25 scores of the documents that match an FTS5 query, best first.

        Args:
            generation: As of which generation.
            words: The query.
            limit: How many at most.
            title: How often a word of the title counts.
            unseen: How many documents on disk do not belong to the generation.
            filters: What the documents must be.
        """
        score = f"-bm25(words, {title}, 1.0) AS score"
        condition, values = conditions_sql(filters)
        if condition:
            query = f"""SELECT seq, {score} FROM words JOIN documents ON seq = words.rowid
                WHERE words MATCH ? AND {_SEEN}{condition} ORDER BY score DESC, seq LIMIT ?"""
            return self._all(query, (words, generation, generation, *values, limit))
        # looking up every document that has one of the words would take three times as long
        query = f"""SELECT seq, score FROM (
            SELECT rowid AS place, {score} FROM words WHERE words MATCH ? ORDER BY score DESC, rowid LIMIT ?
            ) JOIN documents ON seq = place WHERE {_SEEN} ORDER BY score DESC, seq LIMIT ?"""
        return self._all(query, (words, limit + unseen, generation, generation, limit))

    def facet_keys(self) -> list[str]:
        """What can be filtered by; each is looked up after the last, since there are many facets of few keys."""
        query = """WITH RECURSIVE keys(key) AS (
            SELECT min(key) FROM facets
            UNION ALL SELECT (SELECT min(key) FROM facets WHERE key > keys.key) FROM keys WHERE keys.key IS NOT NULL
        ) SELECT key FROM keys WHERE key IS NOT NULL"""
        return [ID, *(key for (key,) in self._all(query, ()) if key != ID)]

    def chunks(self) -> list[tuple[int, int, int]]:
        """First row, number of rows and CRC-32 of every block of vectors that was written."""
        return self._all("SELECT first, rows, crc FROM chunks ORDER BY first", ())

    def problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        return [line for (line,) in self._all("PRAGMA quick_check", ()) if line != "ok"]

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _all(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self.lock, self.errors():
            return self.db.execute(query, values).fetchall()

    def _one(self, query: str, values: Sequence[Any]) -> Any:
        with self.lock, self.errors():
            return self.db.execute(query, values).fetchone()

    def _column(self, query: str, values: Sequence[Any]) -> np.ndarray[Any, Any]:
        with self.lock, self.errors():
            return np.fromiter((value for (value,) in self.db.execute(query, values)), dtype=np.int64)

    def _many(self, query: str, values: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
        """A query with a list of any length in place of its `%s`."""
        found: list[Any] = []
        for part in parts(wanted):
            found += self._all(query % ",".join("?" * len(part)), (*values, *part))
        return found

    @contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's errors as this package's, with the file's name."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}; {UNHARMED}.") from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise DamagedIndexError(f"{self.path} is truncated or corrupted ({error}); {RECOVERY}.") from error


def _has_log(path: Path) -> bool:
    """Whether some of a database is still in the log beside it, where an interrupted writer left it."""
    log = path.with_name(f"{path.name}-wal")
    return log.is_file() and log.stat().st_size > 0


def parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Values, as many at a time as go into one query."""
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def document_of(fields: Sequence[Any]) -> Document:
    """The document of a row of `FIELDS`."""
    name, text, metadata, title, source = fields
    return Document(name, text, json.loads(metadata), title, source)
