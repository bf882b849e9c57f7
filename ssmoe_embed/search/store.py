"""The database of an index: ids, texts, metadata, which vector belongs to which text, and the conditions of filters.

A change belongs to a generation: a document is seen from the generation that added it until the one that removed it. A
writer works on the generation after the published one, so nobody sees its changes before the manifest names that
generation, and an interrupted writer's are taken back by the next one. What it encoded stays: `vectors` says which texts
have a vector already.

Of filters, `lang=en` asks for a value, `path=notes/*.md` for a pattern, `year>=1999` or `year=1999..2005` for a range. Of
the conditions `key=…` with one key a document must meet one, of the others every one.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssmoe_embed.data import Document
from ssmoe_embed.search.manifest import RECOVERY, UNHARMED, DamagedIndexError

NEVER = 2**62
"""The generation that removes what is still there."""
FIELDS = "id, text, metadata, title, source"
_AT_ONCE = 500
"""Values in one query; older SQLite takes 999."""
_BUSY_SECONDS = 30.0
_ID = "id"
"""The key of filters that means a document's id, which is not among the facets."""
_FORM = re.compile(r"\s*(?P<key>[^=<>]*[^=<>\s])\s*(?P<operator><=|>=|=|<|>)\s*(?P<value>.*?)\s*", re.DOTALL)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_DATE = r"\d{4}-\d\d(?:-\d\d)?\S*?"
_RANGE = re.compile(rf"(?P<low>{_NUMBER}|{_DATE})\.\.(?P<high>{_NUMBER}|{_DATE})")


@dataclass(frozen=True)
class Criterion:
    """What a value must be.

    Attributes:
        operator: `=`, `<`, `<=`, `>` or `>=`; numbers are compared as numbers, everything else as text.
        value: What it is compared with. After `=`, `*` and `?` stand for any characters and for any one of them.
    """

    operator: str
    value: str


def parse_filters(conditions: Iterable[str]) -> dict[str, list[Criterion]]:
    """For each key its conditions; space around a key or a value means nothing.

    Raises:
        ValueError: A condition is written otherwise.
    """
    found: dict[str, list[Criterion]] = {}
    for condition in conditions:
        parts = _FORM.fullmatch(condition)
        if parts is None:
            raise ValueError(
                f"filter={condition!r} is not of the form key=value, such as lang=en, 'path=notes/*', 'year>=1999' or "
                "year=1999..2005."
            )
        criteria = found.setdefault(parts["key"], [])
        if parts["operator"] == "=" and (bounds := _RANGE.fullmatch(parts["value"])):
            criteria += [Criterion(">=", bounds["low"]), Criterion("<=", bounds["high"])]
        else:
            criteria.append(Criterion(parts["operator"], parts["value"]))
    return found


def conditions_sql(filters: Mapping[str, Any] | None) -> tuple[str, list[Any]]:
    """SQL that rows of the documents must meet, which begins with AND or is empty, with its parameters.

    For each key there is a value, which is compared exactly, a `Criterion`, or a list of them.
    """
    sql, values = "", []
    for key, wanted in (filters or {}).items():
        asked = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
        bounds = [one for one in asked if isinstance(one, Criterion) and one.operator != "="]
        equal = [one for one in asked if one not in bounds]
        for group in [equal, *([one] for one in bounds)]:
            if not group and asked:
                continue
            parts = [_compared(one, "id" if key == _ID else "value") for one in group]
            met = " OR ".join(part for part, _ in parts) or "0"
            if key == _ID:
                sql += f" AND ({met})"
            else:
                sql += f" AND seq IN (SELECT seq FROM facets WHERE key = ? AND ({met}))"
                values.append(key)
            values += [value for _, own in parts for value in own]
    return sql, values


def facet_of(value: Any) -> tuple[str, float | None]:
    """A metadata value as filters compare it: as text, and as a number if it is one."""
    if isinstance(value, bool):
        return str(value).lower(), None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text, float(text) if re.fullmatch(_NUMBER, text) else None


def _compared(wanted: Any, column: str) -> tuple[str, list[Any]]:
    """One condition as SQL on a column of text, with its parameters."""
    if not isinstance(wanted, Criterion):
        return f"{column} = ?", [facet_of(wanted)[0]]
    text, number = facet_of(wanted.value)
    if wanted.operator == "=":
        if "*" in text or "?" in text:  # as text too: what a hit prints must find it again
            return f"({column} = ? OR {column} GLOB ?)", [text, text.replace("[", "[[]")]
        spelled = {text} if number is None else {text, facet_of(number)[0], str(number)}
        return f"{column} IN ({','.join('?' * len(spelled))})", sorted(spelled)
    if number is not None and column == "value":
        return f"number {wanted.operator} ?", [number]
    return f"{column} {wanted.operator} ?", [text]


class Store:
    """One connection to the database, which shows one generation; threads may share it.

    Raises:
        DamagedIndexError: It is missing, or is no database.
    """

    def __init__(self, path: Path, generation: int, *, writable: bool = False) -> None:
        """Open the database; `WritableStore` opens it to write."""
        self.path = path
        self.generation = generation
        self.lock = threading.RLock()
        if not writable and not path.is_file():
            raise DamagedIndexError(f"{path} is missing; {RECOVERY}.")
        # where SQLite cannot put files beside it, it must know that nothing changes; but then it does not look at its log,
        # where an interrupted writer may have left some of it
        log = path.with_name(f"{path.name}-wal")
        frozen = not os.access(path.parent, os.W_OK) and not (log.is_file() and log.stat().st_size)
        address = path.absolute().as_uri() + ("" if writable else "?immutable=1" if frozen else "?mode=ro")
        with self.errors():
            self.db = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)
            self.db.isolation_level = None  # transactions begin and end where this file says so

    def close(self) -> None:
        """Let go of the file."""
        with self.lock:
            self.db.close()

    def published(self) -> tuple[int, int] | None:
        """Documents and rows that the generation was published with."""
        found = self._all("SELECT documents, rows FROM generations WHERE generation = ?", [self.generation])
        return found[0] if found else None

    def count(self) -> int:
        """How many documents there are."""
        return int(self._numbers(f"SELECT count(*) FROM documents WHERE {self._seen}")[0])

    def held(self) -> int:
        """How many documents are on disk, removed ones that an older generation may still show included."""
        return int(self._numbers("SELECT count(*) FROM documents")[0])

    def documents(self, offset: int = 0, limit: int | None = None) -> list[Document]:
        """Documents in the order in which they were added."""
        query = f"SELECT {FIELDS} FROM documents WHERE {self._seen} ORDER BY seq LIMIT ? OFFSET ?"
        return [document_of(found) for found in self._all(query, [-1 if limit is None else limit, offset])]

    def document_rows(self) -> np.ndarray[Any, Any]:
        """The row of each document's vector in the order of `documents`, int64 `[N]`."""
        return self._numbers(f"SELECT row FROM documents WHERE {self._seen} ORDER BY seq")

    def stream(self, size: int = 4096) -> Iterator[list[tuple[int, Document]]]:
        """All documents, `(row, document)`, so many at a time."""
        last = -1
        query = f"SELECT seq, row, {FIELDS} FROM documents WHERE {self._seen} AND seq > ? ORDER BY seq LIMIT {size}"
        while found := self._all(query, [last]):
            yield [(row, document_of(rest)) for _, row, *rest in found]
            last = found[-1][0]

    def by_ids(self, ids: Sequence[str]) -> dict[str, tuple[int, Document]]:
        """Row and document of each id that is there."""
        found = self._many(f"SELECT id, row, {FIELDS} FROM documents WHERE {self._seen} AND id IN (%s)", ids)
        return {name: (row, document_of(rest)) for name, row, *rest in found}

    def by_seqs(self, seqs: Sequence[int]) -> dict[int, tuple[int, Document]]:
        """Row and document of each sequence number."""
        found = self._many(f"SELECT seq, row, {FIELDS} FROM documents WHERE seq IN (%s)", seqs)
        return {seq: (row, document_of(rest)) for seq, row, *rest in found}

    def of_rows(
        self, rows: Sequence[int], filters: Mapping[str, Any] | None = None
    ) -> dict[int, list[tuple[int, Document]]]:
        """For each row the documents `(seq, document)` that have its vector and pass the filters."""
        condition, values = conditions_sql(filters)
        query = f"SELECT row, seq, {FIELDS} FROM documents WHERE {self._seen}{condition} AND row IN (%s) ORDER BY seq"
        groups: dict[int, list[tuple[int, Document]]] = {}
        for row, seq, *rest in self._many(query, rows, values):
            groups.setdefault(row, []).append((seq, document_of(rest)))
        return groups

    def rows(self, filters: Mapping[str, Any] | None = None) -> np.ndarray[Any, Any]:
        """Rows whose vectors belong to a document that passes the filters, ascending int64."""
        condition, values = conditions_sql(filters)
        return self._numbers(f"SELECT DISTINCT row FROM documents WHERE {self._seen}{condition} ORDER BY row", values)

    def ids(self, filters: Mapping[str, Any]) -> list[str]:
        """Ids of the documents that pass the filters, in the order in which they were added."""
        condition, values = conditions_sql(filters)
        query = f"SELECT id FROM documents WHERE {self._seen}{condition} ORDER BY seq"
        return [name for (name,) in self._all(query, values)]

    def count_word(self, word: str) -> int:
        """How many documents on disk, removed ones included until the index is compacted, have a word."""
        return int(self._numbers("SELECT count(*) FROM words WHERE words MATCH ?", [word])[0])

    def matching(
        self,
        words: str,
        limit: int,
        *,
        title: float = 1.0,
        unseen: int = 0,
        filters: Mapping[str, Any] | None = None,
    ) -> list[tuple[int, float]]:
        """Sequence numbers and BM25 scores of the documents that match an FTS5 query, best first.

        A word of the title counts `title` times; `unseen` documents on disk do not belong to the generation.
        """
        score = f"-bm25(words, {title}, 1.0) AS score"
        condition, values = conditions_sql(filters)
        if condition:
            query = f"""SELECT seq, {score} FROM words JOIN documents ON seq = words.rowid
                WHERE words MATCH ? AND {self._seen}{condition} ORDER BY score DESC, seq LIMIT ?"""
            return self._all(query, [words, *values, limit])
        # looking up every document that has one of the words would take three times as long
        query = f"""SELECT seq, score FROM (
            SELECT rowid AS place, {score} FROM words WHERE words MATCH ? ORDER BY score DESC, rowid LIMIT ?
            ) JOIN documents ON seq = place WHERE {self._seen} ORDER BY score DESC, seq LIMIT ?"""
        return self._all(query, [words, limit + unseen, limit])

    def facet_keys(self) -> list[str]:
        """What can be filtered by; each is looked up after the last, since there are many facets of few keys."""
        query = """WITH RECURSIVE keys(key) AS (
            SELECT min(key) FROM facets
            UNION ALL SELECT (SELECT min(key) FROM facets WHERE key > keys.key) FROM keys WHERE keys.key IS NOT NULL
        ) SELECT key FROM keys WHERE key IS NOT NULL"""
        return [_ID, *(key for (key,) in self._all(query) if key != _ID)]

    def chunks(self) -> list[tuple[int, int, int]]:
        """First row, number of rows and CRC-32 of every block of vectors that was written."""
        return self._all("SELECT first, rows, crc FROM chunks ORDER BY first")

    def problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        return [line for (line,) in self._all("PRAGMA quick_check") if line != "ok"]

    # --- helpers ------------------------------------------------------------------------------------------------------

    @property
    def _seen(self) -> str:
        """The condition that a document belongs to the generation."""
        return f"added <= {self.generation} AND removed > {self.generation}"

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self.lock, self.errors():
            return self.db.execute(query, values).fetchall()

    def _numbers(self, query: str, values: Sequence[Any] = ()) -> np.ndarray[Any, Any]:
        """A column of whole numbers, int64."""
        with self.lock, self.errors():
            return np.fromiter((value for (value,) in self.db.execute(query, values)), dtype=np.int64)

    def _many(self, query: str, wanted: Sequence[Any], values: Sequence[Any] = ()) -> list[Any]:
        """A query with a list of any length in place of its `%s`."""
        return [
            found for part in parts(wanted) for found in self._all(query % ",".join("?" * len(part)), [*values, *part])
        ]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's errors as this package's, with the file's name."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}; {UNHARMED}.") from error
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise DamagedIndexError(f"{self.path} is truncated or corrupted ({error}); {RECOVERY}.") from error


def parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Values, as many at a time as go into one query."""
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def document_of(fields: Sequence[Any]) -> Document:
    """The document of a row of `FIELDS`."""
    name, text, metadata, title, source = fields
    return Document(name, text, json.loads(metadata), title, source)
