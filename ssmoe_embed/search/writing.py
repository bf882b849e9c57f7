"""Changing an index: one writer, whose changes nobody sees before the whole new generation is on disk."""

from __future__ import annotations

import json
import os
import shutil
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timezone
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.data import Document
from ssmoe_embed.search.kinds import IndexKind
from ssmoe_embed.search.manifest import BusyIndexError, Manifest, StoredFile
from ssmoe_embed.search.nearest import build, up_to_date
from ssmoe_embed.search.store_writing import WritableStore
from ssmoe_embed.search.vectors import Array, VectorType, append_rows, map_rows, unit

_LOCK = "writer.lock"
_HOLDER = "writer.json"
_OWN_FILES = ("store-*", "vectors-*", "approximate-*", ".approximate-*", ".manifest.json.*", ".writer.json.*")
_WASTE = 0.5
"""Vectors of removed texts are thrown out when they are more than this share of all, …"""
_WASTED = 1_000
"""… and more than so many; and so are removed documents."""

Encode = Callable[[Sequence[Document]], Array]
"""Documents → their vectors `[n,D]`."""


@dataclass(frozen=True)
class AddCounts:
    """What became of the documents that were added.

    Attributes:
        added: Documents of a new id.
        updated: Documents that replaced one of the same id.
        unchanged: Documents that were there already, just so.
        removed: Documents that were there and no longer are.
        encoded: Texts that went through the model; the others had a vector already.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    encoded: int = 0
    removed: int = 0

    @property
    def total(self) -> int:
        """All documents that were given."""
        return self.added + self.updated + self.unchanged

    def __add__(self, other: AddCounts) -> AddCounts:
        return AddCounts(*map(add, astuple(self), astuple(other)))


class Writer:
    """Holds the lock of an index and works on its next generation. Made by `open_writer`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.next = manifest.generation + 1
        self.store = WritableStore(folder / manifest.store, self.next)
        self.store.take_back()
        self.counts = AddCounts()
        self.changed = False

    def add(self, documents: Sequence[Document], encode: Encode) -> None:
        """Add or replace documents, of several of one id the last; on return they are on disk, but not published."""
        latest = {document.id: document for document in documents}
        there = {name: document for name, (_, document) in self.store.by_ids(list(latest)).items()}
        changed = [document for document in latest.values() if there.get(document.id) != document]
        firsts: dict[bytes, Document] = {}
        for document in changed:
            firsts.setdefault(document.content, document)
        known = self.store.known(list(firsts))
        new = {content: document for content, document in firsts.items() if content not in known}
        vectors = self._rows(encode(list(new.values())), len(new)) if new else None
        first = self.store.next_row()
        if vectors is not None:
            append_rows(self.folder / self.manifest.vectors, first, vectors)
        with self.store.transaction():
            if vectors is not None:
                self.store.add_vectors(list(new), first, zlib.crc32(vectors.tobytes()))
            rows = known | {content: first + offset for offset, content in enumerate(new)}
            self.store.remove([document.id for document in changed])
            self.store.insert([(document, rows[document.content]) for document in changed])
            self.store.see(latest)
        self.changed |= bool(changed)
        self.counts += replace(_counted(documents, there), encoded=len(new))

    def _rows(self, vectors: Array, count: int) -> Array:
        """Vectors as they are stored, if there are so many of the index's dimension."""
        rows = unit(vectors).astype(self.manifest.dtype)
        if rows.shape != (count, self.manifest.dimension):
            raise ValueError(
                f"The vectors have shape {rows.shape} and the index takes {(count, self.manifest.dimension)}; "
                "give one vector of the index's dimension for each document."
            )
        return rows

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; ids that are not there are passed over."""
        with self.store.transaction():
            self._removed(self.store.remove(ids))

    def prune(self) -> None:
        """Remove the documents that this writer was not given."""
        with self.store.transaction():
            self._removed(self.store.remove_unseen())

    def _removed(self, count: int) -> None:
        self.counts += AddCounts(removed=count)
        self.changed |= count > 0

    def publish(self, *, recall: float, progress: bool, rebuild: bool = False) -> None:
        """Make everything that was added and deleted the current generation; the writer's last act.

        The approximate index, built from nothing if `rebuild` says so, is to reach a `recall`.
        """
        live = self.store.rows()
        rows, documents = self.store.next_row(), self.store.count()
        if _wasteful(len(live), rows) or _wasteful(documents, self.store.held()):
            live = self._compacted(live)
            rows = len(live)
        manifest = self.manifest
        if rebuild:
            manifest = replace(manifest, approximate=None, search={})
        vectors = map_rows(self.folder / manifest.vectors, rows, manifest.dimension, manifest.dtype)  # or it is damaged
        if rebuild or not manifest.search or not up_to_date(manifest, rows, len(live)):
            name = f"approximate-{self.next}.faiss"
            manifest = build(self.folder, manifest, vectors, live, name=name, recall=recall, progress=progress)
        self.store.publish(documents, rows)
        self.manifest = replace(manifest, generation=self.next, documents=documents, rows=rows, live=len(live))
        self.manifest.write(self.folder)

    def _compacted(self, live: Array) -> Array:
        """Copy what is still used into new files; its rows are numbered from 0."""
        stored = self.manifest
        old = map_rows(self.folder / stored.vectors, self.store.next_row(), stored.dimension, stored.dtype)
        fresh_store, fresh_vectors = f"store-{self.next}.sqlite", f"vectors-{self.next}.bin"
        for name in (fresh_store, fresh_vectors):
            (self.folder / name).unlink(missing_ok=True)
        self.manifest = replace(stored, store=fresh_store, vectors=fresh_vectors, approximate=None, search={})
        store = WritableStore(self.folder / self.manifest.store, self.next)
        placed: dict[int, int] = {}
        for part in self.store.stream():
            fresh: dict[int, bytes] = {row: document.content for row, document in part if row not in placed}
            first = len(placed)
            vectors = np.asarray(old[list(fresh)])
            with store.transaction():
                if fresh:
                    append_rows(self.folder / self.manifest.vectors, first, vectors)
                    store.add_vectors(list(fresh.values()), first, zlib.crc32(vectors.tobytes()))
                    placed |= {row: first + offset for offset, row in enumerate(fresh)}
                store.insert([(document, placed[row]) for row, document in part])
        self.store.close()
        self.store = store
        return np.arange(len(live), dtype=np.int64)

    def compact(self, kind: IndexKind | None = None) -> None:
        """Throw out what no document uses any more, and change the kind, when the next generation is published."""
        live = self.store.rows()
        if len(live) < self.store.next_row():
            self._compacted(live)
        if kind is not None:
            self.manifest = replace(self.manifest, kind=str(kind))

    def tidy(self) -> None:
        """Remove files that belong to no generation; those that are open elsewhere go when they are closed."""
        manifest = self.manifest
        kept = {manifest.vectors, *(f"{manifest.store}{end}" for end in ("", "-wal", "-shm", "-journal"))}
        if isinstance(manifest.approximate, StoredFile):
            kept.add(manifest.approximate.name)
        for pattern in _OWN_FILES:
            for path in self.folder.glob(pattern):
                if path.name in kept:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                # open in another process on a system that forbids it; the next writer tries again
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def create_files(
    folder: Path, kind: IndexKind, dtype: VectorType, fingerprint: Mapping[str, Any], reference: Mapping[str, Any]
) -> None:
    """Make the first generation, which has no documents; the arguments are those of `SemanticIndex.create`.

    Raises:
        BusyIndexError: Somebody else is making one.
        FileExistsError: There is an index in the folder already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        if Manifest.exists(folder):
            raise FileExistsError(f"There is an index in {folder} already; open it, or choose another folder.")
        manifest = Manifest(
            generation=1,
            documents=0,
            rows=0,
            live=0,
            dimension=int(fingerprint["dimension"]),
            dtype=str(dtype),
            store="store-1.sqlite",
            vectors="vectors-1.bin",
            kind=str(kind),
            model=dict(fingerprint),
            reference=dict(reference),
        )
        store = WritableStore(folder / manifest.store, 1)
        store.publish(0, 0)
        store.close()
        manifest.write(folder)


@contextmanager
def open_writer(folder: Path) -> Iterator[Writer]:
    """A writer of the current generation.

    Raises:
        BusyIndexError: Somebody else is writing.
        DamagedIndexError: The index is broken.
    """
    with writing(folder):
        writer = Writer(folder, Manifest.read(folder))
        try:
            writer.tidy()
            yield writer
            writer.tidy()
        finally:
            writer.store.close()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for a block; the system lets go of it if the process dies.

    Raises:
        BusyIndexError: Another writer holds it; the message names it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        try:
            found = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
            holder = f"Process {found['pid']} on {found['host']} (since {found['since']})"
        except (OSError, ValueError, KeyError):
            holder = "Another process"
        raise BusyIndexError(
            f"{holder} is writing to the index in {folder}; wait until it has finished, or stop it."
        ) from None
    try:
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with atomic_file(folder / _HOLDER) as file:
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}).encode())
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _counted(documents: Sequence[Document], there: Mapping[str, Document]) -> AddCounts:
    """What becomes of documents, one after the other, beside those of the same ids that are there."""
    now, counts = dict(there), Counter[str]()
    for document in documents:
        before = now.get(document.id)
        counts["added" if before is None else "unchanged" if before == document else "updated"] += 1
        now[document.id] = document
    return AddCounts(**counts)


def _wasteful(used: int, held: int) -> bool:
    return held - used > max(_WASTED, _WASTE * held)
