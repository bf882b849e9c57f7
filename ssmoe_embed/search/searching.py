"""One published generation of an index, opened to be read."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.search.building import open_approximate
from ssmoe_embed.search.documents import Document, Hit
from ssmoe_embed.search.errors import DamagedIndexError
from ssmoe_embed.search.keywords import Keywords, fuse
from ssmoe_embed.search.manifest import Manifest
from ssmoe_embed.search.nearest import NOTHING, Allowed, Nearest, dot
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.vectors import Array, map_rows

_TRIES = 20
_FUSED = 100
"""How deep the two rankings of a hybrid search go."""


class Generation:
    """What one manifest names: the database as of then, the vectors, the approximate index."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open everything that the manifest names.

        Raises:
            DamagedIndexError: A file is missing, cut short, or does not belong to the others.
        """
        self.folder = folder
        self.manifest = manifest
        self.store = Store(folder / manifest.store)
        published = self.store.published(manifest.generation)
        if published != (manifest.documents, manifest.rows):
            raise DamagedIndexError(
                f"{folder}: the manifest says {manifest.documents} documents with {manifest.rows} vectors in generation "
                f"{manifest.generation}, and {manifest.store} says {published or 'nothing of it'}; the files were not "
                "copied together. Copy the folder again while nobody writes to it."
            )
        self.vectors = map_rows(folder / manifest.vectors, manifest.rows, manifest.dimension, manifest.dtype)
        self.nearest = Nearest(self.vectors, open_approximate(folder, manifest))
        self._live: Allowed | None = None
        self._keywords: Keywords | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Generation:
        """The current generation; a writer may replace it while it is being opened."""
        manifest = Manifest.read(folder)
        for _ in range(_TRIES):
            try:
                return cls(folder, manifest)
            except (DamagedIndexError, OSError):  # SQLite opens its file only when it is first asked
                newer = Manifest.read(folder)
                if newer == manifest:
                    raise
                manifest = newer
        return cls(folder, manifest)

    # --- documents ------------------------------------------------------------------------------------------------------

    def documents(self, offset: int = 0, limit: int | None = None) -> list[Document]:
        """Documents in the order in which they were added."""
        return self.store.documents(self.manifest.generation, offset, limit)

    def document_rows(self) -> Array:
        """The row of each document's vector, in that order, int64 `[N]`."""
        return self.store.document_rows(self.manifest.generation)

    def by_ids(self, ids: Sequence[str]) -> dict[str, tuple[int, Document]]:
        """Row and document of each id that is there."""
        return self.store.by_ids(self.manifest.generation, ids)

    def one(self, id: str) -> tuple[int, Document]:  # noqa: A002 (a document's own word)
        """Row and document of an id.

        Raises:
            KeyError: It is not there.
        """
        found = self.by_ids([id])
        if id not in found:
            raise KeyError(f"{id!r} is not in the index of {len(self)} documents.")
        return found[id]

    def __len__(self) -> int:
        return self.manifest.documents

    def vectors_of(self, which: Sequence[str] | slice | None) -> Array:
        """Unit vectors `[n,D]`, float32, of documents by id, or of a slice of them in order; None for all.

        Raises:
            KeyError: An id is not there.
        """
        if which is None or isinstance(which, slice):
            rows = self.document_rows()[which if which is not None else slice(None)]
        else:
            found = self.by_ids(list(which))
            missing = [name for name in which if name not in found]
            if missing:
                raise KeyError(f"{missing[0]!r} is not in the index ({len(missing)} of {len(which)} ids are not).")
            rows = np.array([found[name][0] for name in which], dtype=np.int64)
        return np.asarray(self.vectors[rows], dtype=np.float32)

    def info(self) -> dict[str, Any]:
        """What the manifest says, with what the files take."""
        files = [path for path in self.folder.iterdir() if path.is_file()]
        shown = {key: value for key, value in asdict(self.manifest).items() if key not in ("model", "search")}
        search = {key: value for key, value in self.manifest.search.items() if key != "state"}
        model = {key: value for key, value in self.manifest.model.items() if key not in ("probes", "sketch")}
        return shown | {"search": search, "model": model, "bytes": sum(path.stat().st_size for path in files)}

    # --- search ---------------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: Array,
        top: int,
        *,
        filters: Mapping[str, Any] | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Hits for each query, best first; of equal scores the document added first.

        Args:
            queries: Unit vectors `[Q,D]`.
            top: How many documents.
            filters: Values that documents must have.
            texts: The queries in words, for a hybrid search.

        Raises:
            ValueError: `top` is less than 1, the vectors are of another dimension, or a filter's key is not known.
        """
        self._check(queries, top, filters)
        depth = max(top, _FUSED) if texts is not None else top
        allowed = self._allowed(filters)
        if not len(self) or (allowed is not None and not len(allowed.rows)):
            return [[] for _ in queries]
        rows, scores = self.nearest.top(queries, depth, allowed)
        groups = self.store.of_rows(self.manifest.generation, _distinct(rows), filters)
        ranked = [_ranked(row, score, groups)[:depth] for row, score in zip(rows, scores, strict=True)]
        if texts is None:
            return [[Hit(document, score, score) for _, document, score in hits] for hits in ranked]
        return [
            self._hybrid(query, text, hits, top, filters)
            for query, text, hits in zip(queries, texts, ranked, strict=True)
        ]

    def _check(self, queries: Array, top: int, filters: Mapping[str, Any] | None) -> None:
        if top < 1:
            raise ValueError(f"top={top} asks for no document; choose at least 1.")
        if queries.shape[1] != self.manifest.dimension:
            raise ValueError(
                f"The query vectors have {queries.shape[1]} numbers and those of the index {self.manifest.dimension}; "
                "encode them with the index's model."
            )
        if filters:
            keys = self.store.facet_keys()
            for key in filters:
                if key not in keys:
                    raise ValueError(unknown("filter", key, keys))

    def _allowed(self, filters: Mapping[str, Any] | None) -> Allowed | None:
        """Which rows may be found; None for all."""
        if filters:
            rows = self.store.passing(self.manifest.generation, filters)
            return Allowed.of(rows, self.manifest.rows)
        if self.manifest.live == self.manifest.rows:
            return None
        with self._lock:
            if self._live is None:
                self._live = Allowed.of(self.store.live_rows(self.manifest.generation), self.manifest.rows)
            return self._live

    def _hybrid(
        self,
        query: Array,
        text: str,
        dense: list[tuple[int, Document, float]],
        top: int,
        filters: Mapping[str, Any] | None,
    ) -> list[Hit]:
        """The fused ranking of a query's nearest documents and those that BM25 finds."""
        seqs = self.store.passing_seqs(self.manifest.generation, filters) if filters else None
        sparse = self.keywords().search(text, _FUSED, seqs)
        fused = fuse([seq for seq, _, _ in dense], sparse)[:top]
        found = self.store.by_seqs([seq for seq, _ in fused])
        similar = dot(self.vectors[[found[seq][0] for seq, _ in fused]], query)
        return [
            Hit(found[seq][1], score, float(similarity))
            for (seq, score), similarity in zip(fused, similar, strict=True)
        ]

    def keywords(self) -> Keywords:
        """The BM25 index of this generation, made when it is first needed."""
        with self._lock:
            if self._keywords is None:
                self._keywords = Keywords.of(self.folder, self.store, self.manifest.generation)
            return self._keywords


def _distinct(rows: Array) -> list[int]:
    return [int(row) for row in np.unique(rows) if row != NOTHING]


def _ranked(
    rows: Array, scores: Array, groups: Mapping[int, list[tuple[int, Document]]]
) -> list[tuple[int, Document, float]]:
    """`(seq, document, score)` of the documents behind rows, best first."""
    hits = [
        (seq, document, float(score))
        for row, score in zip(rows, scores, strict=True)
        for seq, document in groups.get(int(row), [])
    ]
    return sorted(hits, key=lambda hit: (-hit[2], hit[0]))
