"""One published generation of an index, opened to be read."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.data import Document
from ssmoe_embed.search.hits import Hit
from ssmoe_embed.search.hybrid import Usual, word_shares
from ssmoe_embed.search.manifest import DamagedIndexError, Manifest, file_hash
from ssmoe_embed.search.nearest import NOTHING, Allowed, Nearest, dot, open_approximate
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.vectors import Array, map_rows

_TRIES = 20
_FUSED = 100
"""So many of the nearest, and of those with the most words, are candidates of a hybrid search."""
_SHARES = 1_000
"""So many documents' words are looked at."""
_SAMPLE = 1_000
"""So many vectors say what similarity is usual."""


class Generation:
    """What one manifest names: the database as of then, the vectors, the approximate index."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open everything that the manifest names.

        Raises:
            DamagedIndexError: A file is missing, cut short, or does not belong to the others.
        """
        self.folder = folder
        self.manifest = manifest
        self.store = Store(folder / manifest.store, manifest.generation)
        published = self.store.published()
        if published != (manifest.documents, manifest.rows):
            raise DamagedIndexError(
                f"{folder}: the manifest says {manifest.documents} documents with {manifest.rows} vectors in generation "
                f"{manifest.generation}, and {manifest.store} says {published or 'nothing of it'}; the files were not "
                "copied together. Copy the folder again while nobody writes to it."
            )
        self.vectors = map_rows(folder / manifest.vectors, manifest.rows, manifest.dimension, manifest.dtype)
        self.nearest = Nearest(self.vectors, open_approximate(folder, manifest))
        self._live: Allowed | None = None
        self._sample: Array | None = None
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

    def __len__(self) -> int:
        return self.manifest.documents

    def one(self, id: str) -> tuple[int, Document]:  # noqa: A002 (a document's own word)
        """Row and document of an id.

        Raises:
            KeyError: It is not there.
        """
        found = self.store.by_ids([id])
        if id not in found:
            raise KeyError(f"{id!r} is not in the index of {len(self)} documents.")
        return found[id]

    def vectors_of(self, which: Sequence[str] | slice | None) -> Array:
        """See `SemanticIndex.vectors`."""
        if which is None or isinstance(which, slice):
            rows = self.store.document_rows()[which or slice(None)]
        else:
            found = self.store.by_ids(list(which))
            missing = [name for name in which if name not in found]
            if missing:
                raise KeyError(f"{missing[0]!r} is not in the index ({len(missing)} of {len(which)} ids are not).")
            rows = np.array([found[name][0] for name in which], dtype=np.int64)
        return np.asarray(self.vectors[rows], dtype=np.float32)

    def info(self) -> dict[str, Any]:
        """See `SemanticIndex.info`."""
        shown = asdict(self.manifest)
        shown["search"].pop("state", None)
        for long in ("probes", "sketch"):
            shown["model"].pop(long, None)
        shown |= {name: shown.pop(name) for name in ("search", "model")}
        return shown | {"bytes": sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())}

    def verify(self) -> list[str]:
        """What is wrong with the files, read from end to end, in words; nothing if all is well."""
        manifest, store = self.manifest, self.store
        wrong = [f"{store.path.name}: {problem}" for problem in store.problems()]
        count = store.count()
        if count != manifest.documents:
            wrong.append(f"{store.path.name} has {count} documents and the manifest says {manifest.documents}.")
        covered = 0
        for first, rows, crc in store.chunks():
            if first >= manifest.rows:
                break  # of an interrupted writer
            if zlib.crc32(np.ascontiguousarray(self.vectors[first : first + rows]).tobytes()) != crc:
                wrong.append(f"{manifest.vectors}: rows {first} to {first + rows - 1} do not match their checksum.")
            covered += rows
        if covered != manifest.rows:
            wrong.append(f"{store.path.name} knows of {covered} vectors and the manifest says {manifest.rows}.")
        stored = manifest.approximate
        if stored is not None and file_hash(stored.check(self.folder)) != stored.sha256:
            wrong.append(f"{stored.name} does not match its checksum; rebuild it with `ssmoe index --rebuild`.")
        return wrong

    # --- search ---------------------------------------------------------------------------------------------------------

    def check(self, top: int, filters: Mapping[str, Any] | None) -> None:
        """Make sure that a search makes sense.

        Raises:
            ValueError: `top` is less than 1, or a filter's key is not known.
        """
        if top < 1:
            raise ValueError(f"top={top} asks for no document; choose at least 1.")
        keys = self.store.facet_keys() if filters else []
        for key in filters or ():
            if key not in keys:
                raise ValueError(unknown("filter", key, keys))

    def search(self, queries: Array, top: int, filters: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """The documents nearest to each of the unit vectors `[Q,D]`, best first; of equal scores the document added first.

        What is searched for must have passed `check`, as for the other two searches.

        Raises:
            ValueError: The vectors are of another dimension.
        """
        found = []
        for query, ranked in zip(queries, self._ranked(queries, top, filters), strict=True):
            usual = self._usual(query)
            found.append([Hit(one, score, score, weak=usual.is_weak(score, None)) for _, one, score in ranked])
        return found

    def search_words(self, text: str, top: int, filters: Mapping[str, Any] | None = None) -> list[Hit]:
        """The documents that have most of the words of a query, best first."""
        shares = word_shares(self.store, self.manifest, text, top, filters)
        found = self.store.by_seqs([seq for seq, _ in shares])
        usual = Usual(0, 0, len(self))
        return [Hit(found[seq][1], share, words=share, weak=usual.is_weak(None, share)) for seq, share in shares]

    def search_hybrid(
        self, queries: Array, texts: Sequence[str], top: int, filters: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The documents with the best fused scores for each query, a unit vector of `[Q,D]` and a text, best first.

        They are the best of a query's nearest documents and of those with most of its words, all scored by both.
        """
        depth, found = max(top, _FUSED), []
        for query, text, nearest in zip(queries, texts, self._ranked(queries, depth, filters), strict=True):
            shares = dict(word_shares(self.store, self.manifest, text, max(depth, _SHARES), filters))
            candidates = {seq: (document, similarity) for seq, document, similarity in nearest}
            others = self.store.by_seqs([seq for seq in list(shares)[:depth] if seq not in candidates])
            similar = dot(self.vectors[[row for row, _ in others.values()]], query)
            for (seq, (_, document)), similarity in zip(others.items(), similar, strict=True):
                candidates[seq] = (document, float(similarity))
            usual, hits = self._usual(query), []
            for seq, (document, similarity) in sorted(candidates.items()):
                words = shares.get(seq, 0.0)
                weak = usual.is_weak(similarity, words)
                hits.append(Hit(document, usual.fused(similarity, words), similarity, words, weak))
            found.append(sorted(hits, key=lambda hit: -hit.score)[:top])
        return found

    def _ranked(
        self, queries: Array, top: int, filters: Mapping[str, Any] | None
    ) -> list[list[tuple[int, Document, float]]]:
        """For each query the nearest documents, `(seq, document, similarity)`, best first."""
        if queries.shape[1] != self.manifest.dimension:
            raise ValueError(
                f"The query vectors have {queries.shape[1]} dimensions and those of the index {self.manifest.dimension}; "
                "encode them with the index's model."
            )
        allowed = self._allowed(filters)
        if not len(self) or (allowed is not None and not len(allowed.rows)):
            return [[] for _ in queries]
        rows, scores = self.nearest.top(queries, top, allowed)
        groups = self.store.of_rows([int(row) for row in np.unique(rows) if row != NOTHING], filters)
        ranked = []
        for places, similarities in zip(rows, scores, strict=True):
            hits = [
                (seq, document, float(similarity))
                for row, similarity in zip(places, similarities, strict=True)
                for seq, document in groups.get(int(row), [])
            ]
            ranked.append(sorted(hits, key=lambda hit: (-hit[2], hit[0]))[:top])
        return ranked

    def _allowed(self, filters: Mapping[str, Any] | None) -> Allowed | None:
        """Which rows may be found; None for all."""
        if filters:
            return Allowed.of(self.store.rows(filters), self.manifest.rows)
        if self.manifest.live == self.manifest.rows:
            return None
        with self._lock:
            if self._live is None:
                self._live = Allowed.of(self.store.rows(), self.manifest.rows)
            return self._live

    def _usual(self, query: Array) -> Usual:
        """How similar a query `[D]` is to the documents in general."""
        allowed = self._allowed(None)
        with self._lock:
            if self._sample is None:
                rows = np.arange(self.manifest.rows) if allowed is None else allowed.rows
                rows = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64)]
                self._sample = np.asarray(self.vectors[rows], dtype=np.float32)
        return Usual.of(query, self._sample, len(self))
