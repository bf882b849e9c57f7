"""Changing the database of an index."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssmoe_embed.data import Document
from ssmoe_embed.search.store import FIELDS, NEVER, Store, document_of, facet_of, parts

_ERASED_AT_ONCE = 1_000

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS vectors (content BLOB PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (first INTEGER PRIMARY KEY, rows INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, row INTEGER NOT NULL, added INTEGER NOT NULL, removed INTEGER NOT NULL,
    title TEXT, source TEXT, text TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS current ON documents (id) WHERE removed = {NEVER};
CREATE INDEX IF NOT EXISTS by_id ON documents (id);
CREATE INDEX IF NOT EXISTS by_row ON documents (row);
CREATE INDEX IF NOT EXISTS visible ON documents (removed, added, row);
CREATE TABLE IF NOT EXISTS facets (
    key TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL, number REAL, PRIMARY KEY (key, value, seq)) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
    title, text, content = 'documents', content_rowid = 'seq', tokenize = 'unicode61 remove_diacritics 2');
CREATE TABLE IF NOT EXISTS generations (generation INTEGER PRIMARY KEY, documents INTEGER NOT NULL, rows INTEGER NOT NULL);
"""


class WritableStore(Store):
    """The writer's connection, which works on its generation; it makes the database if it is not there."""

    def __init__(self, path: Path, generation: int) -> None:
        super().__init__(path, generation, writable=True)
        with self.errors():
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the file, with everything in it: what is in SQLite's log cannot be read where nothing may be written."""
        with (
            self.lock,
            suppress(sqlite3.Error),
        ):  # a full disk, say; the log is as good, and the next writer tries again
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        super().close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's changes or none."""
        with self.lock, self.errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self.db.in_transaction:  # a full disk ends it by itself
                    self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    def take_back(self) -> None:
        """Undo what an interrupted writer did after the published generation; its vectors stay."""
        now = self.generation
        with self.transaction():
            # what was both added and removed since then is gone already
            self._erase(f"WHERE removed = {NEVER} AND added >= {now}")
            self.db.execute(f"UPDATE documents SET removed = {NEVER} WHERE removed >= {now} AND removed < {NEVER}")
            self.db.execute(f"DELETE FROM generations WHERE generation >= {now}")

    def next_row(self) -> int:
        """Where the next vector goes."""
        return int(self._numbers("SELECT coalesce(max(first + rows), 0) FROM chunks")[0])

    def known(self, contents: Sequence[bytes]) -> dict[bytes, int]:
        """Rows of the texts that have a vector."""
        return dict(self._many("SELECT content, row FROM vectors WHERE content IN (%s)", contents))

    def add_vectors(self, contents: Sequence[bytes], first: int, crc: int) -> None:
        """Note which rows hold the vectors of new texts; within a transaction."""
        rows = [(content, first + offset) for offset, content in enumerate(contents)]
        self.db.executemany("INSERT INTO vectors (content, row) VALUES (?, ?)", rows)
        self.db.execute("INSERT INTO chunks (first, rows, crc) VALUES (?, ?, ?)", (first, len(contents), crc))

    def insert(self, documents: Iterable[tuple[Document, int]]) -> None:
        """Add documents with their rows; within a transaction, after those of the same id were removed."""
        query = f"""INSERT INTO documents (row, added, removed, {FIELDS})
            VALUES (?, {self.generation}, {NEVER}, ?, ?, ?, ?, ?)"""
        facets: list[tuple[str, str, float | None, int]] = []
        words: list[tuple[int, str | None, str]] = []
        for document, row in documents:
            metadata = json.dumps(dict(document.metadata), ensure_ascii=False, sort_keys=True)
            fields = (document.id, document.text, metadata, document.title, document.source)
            seq = self.db.execute(query, (row, *fields)).lastrowid or 0
            facets += [(*facet, seq) for facet in _facets(document)]
            words.append((seq, document.title, document.text))
        self.db.executemany("INSERT OR IGNORE INTO facets (key, value, number, seq) VALUES (?, ?, ?, ?)", facets)
        self.db.executemany("INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", words)

    def remove(self, ids: Sequence[str]) -> int:
        """Remove documents; within a transaction. Returns how many there were."""
        count = 0
        for part in parts(ids):
            wanted = f"removed = {NEVER} AND id IN ({','.join('?' * len(part))})"
            # left to itself SQLite would look through all documents; those of this very generation nobody has seen
            count += self._erase(f"INDEXED BY current WHERE {wanted} AND added = {self.generation}", part)
            query = f"UPDATE documents INDEXED BY current SET removed = {self.generation} WHERE {wanted}"
            count += self.db.execute(query, part).rowcount
        return count

    def _erase(self, which: str, values: Sequence[Any] = ()) -> int:
        """Delete documents with their facets and words; returns how many there were.

        Facets are deleted by their whole key: they have no index by document, and looking through all of them would make
        adding slower with every document that is there.
        """
        count = 0
        query = f"SELECT seq, {FIELDS} FROM documents {which} LIMIT {_ERASED_AT_ONCE}"
        while found := self.db.execute(query, values).fetchall():
            gone = [(seq, document_of(fields)) for seq, *fields in found]
            facets = [(key, value, seq) for seq, document in gone for key, value, _ in _facets(document)]
            self.db.executemany("DELETE FROM facets WHERE key = ? AND value = ? AND seq = ?", facets)
            words = [(seq, document.title, document.text) for seq, document in gone]
            self.db.executemany("INSERT INTO words (words, rowid, title, text) VALUES ('delete', ?, ?, ?)", words)
            self.db.executemany("DELETE FROM documents WHERE seq = ?", [(seq,) for seq, *_ in found])
            count += len(found)
        return count

    def see(self, ids: Iterable[str]) -> None:
        """Note that these ids are still wanted, for `remove_unseen`; within a transaction."""
        self.db.execute("CREATE TEMP TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self.db.executemany("INSERT OR IGNORE INTO seen (id) VALUES (?)", ((name,) for name in ids))

    def remove_unseen(self) -> int:
        """Remove all documents whose ids were not seen; within a transaction. Returns how many there were."""
        self.see(())
        query = f"""UPDATE documents SET removed = {self.generation}
            WHERE removed = {NEVER} AND id NOT IN (SELECT id FROM seen)"""
        return self.db.execute(query).rowcount

    def publish(self, documents: int, rows: int) -> None:
        """Note what the generation consists of, for readers to compare with the manifest."""
        with self.transaction():
            query = "INSERT OR REPLACE INTO generations (generation, documents, rows) VALUES (?, ?, ?)"
            self.db.execute(query, (self.generation, documents, rows))


def _facets(document: Document) -> Iterator[tuple[str, str, float | None]]:
    """Keys and values that the document can be filtered by, and the numbers among them; each element of a list is one."""
    for key, value in {"source": document.source, **document.metadata}.items():
        for single in value if isinstance(value, list | tuple) else [value]:
            if isinstance(single, str | int | float):
                yield key, *facet_of(single)
