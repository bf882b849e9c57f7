"""A semantic index, as a server searches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ssmoe_embed.search.documents import Document, Hit
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.serving.corpora import Corpus, Entry, Found, Sample, digest, spread

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

    def search(
        self, query: str, top: int, filters: Mapping[str, Sequence[str]], *, hybrid: bool = False, snippets: bool = True
    ) -> list[Found]:
        """See `Corpus.search`; filters are by metadata or source."""
        with suppress(OSError, ValueError):  # a newer generation that cannot be opened: go on with this one
            self._index.refresh()
        hits = self._index.search(query, top, filters=filters or None, hybrid=hybrid, snippets=snippets)
        return [found_of(hit) for hit in hits]

    def explain(self, query: str, name: str) -> list[tuple[str, float]]:
        """See `Corpus.explain`."""
        return [(part.block, part.score) for part in self._index.explain(query, name).contributions]

    def get(self, name: str) -> Entry | None:
        """See `Corpus.get`."""
        try:
            return entry_of(self._index[name])
        except KeyError:
            return None

    def sample(self, most: int) -> Sample:
        """See `Corpus.sample`."""
        index = SemanticIndex.open(self._index.folder)  # one of its own, which no search takes on to a newer generation
        if len(index) <= most:
            documents = index.documents()
        else:
            run = min(_RUN, most)
            starts = spread(len(index) - run + 1, most // run)
            # by id, since runs may overlap
            documents = list({one.id: one for start in starts for one in index.documents(start, run)}.values())
        info = index.info()
        return Sample(
            [entry_of(document) for document in documents],
            index.vectors([document.id for document in documents]),
            digest([str(info[name]) for name in ("generation", "documents", "rows", "model")]),
        )

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
        return Found(entry, hit.score, hit.similarity, entry.text, None)
    return Found(entry, hit.score, hit.similarity, hit.snippet.text, (hit.snippet.start, hit.snippet.end))
