"""A semantic index, as a server searches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ssmoe_embed.retrieval.documents import Document, Hit
from ssmoe_embed.retrieval.index import SemanticIndex
from ssmoe_embed.serving.corpora import Corpus, Entry, Found, digest, spread

_RUN = 100
"""Documents next to each other in a sample: finding a place in a large database takes longer than reading on from it."""


class IndexCorpus(Corpus):
    """Documents on disk; what another process adds to them is seen by the next search."""

    hybrid = True
    explains = True

    def __init__(self, index: SemanticIndex) -> None:
        """Bind an index that was opened with its model."""
        self._index = index
        self.name = index.folder.resolve().name
        self.folder = index.folder

    def __len__(self) -> int:
        return len(self._index)

    def fingerprint(self) -> str:
        """Of the index's generation and of what made it."""
        info = self._index.info()
        return digest([str(info[name]) for name in ("generation", "documents", "rows", "model")])

    def search(self, query: str, top: int, filters: Mapping[str, str], *, hybrid: bool = False) -> list[Found]:
        """See `Corpus.search`; filters are by metadata or source."""
        with suppress(OSError, ValueError):  # a newer generation that cannot be opened: go on with this one
            self._index.refresh()
        hits = self._index.search(query, top, filters=filters or None, hybrid=hybrid, snippets=True)
        return [found_of(hit) for hit in hits]

    def explain(self, query: str, name: str) -> list[tuple[str, float]]:
        """See `Corpus.explain`."""
        return [(part.block, part.score) for part in self._index.explain(query, name).contributions]

    def get(self, name: str) -> Entry | None:
        """See `Corpus.get`."""
        return entry_of(self._index[name]) if name in self._index else None

    def sample(self, most: int) -> tuple[list[Entry], np.ndarray[Any, Any]]:
        """See `Corpus.sample`."""
        if len(self) <= most:
            documents = self._index.documents()
        else:
            run = min(_RUN, most)
            starts = spread(len(self) - run + 1, most // run)
            # by id, since runs may overlap
            found = {one.id: one for start in starts for one in self._index.documents(start, run)}
            documents = list(found.values())
        return [entry_of(document) for document in documents], self.vectors([document.id for document in documents])

    def vectors(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """See `Corpus.vectors`."""
        return self._index.vectors(list(names))


def entry_of(document: Document) -> Entry:
    """A document as the server shows it."""
    return Entry(document.id, document.title or "", document.text, document.source or "", document.metadata)


def found_of(hit: Hit) -> Found:
    """A hit as the server shows it."""
    entry = entry_of(hit.document)
    if hit.snippet is None:
        return Found(entry, hit.score, entry.text, None)
    return Found(entry, hit.score, hit.snippet.text, (hit.snippet.start, hit.snippet.end))
