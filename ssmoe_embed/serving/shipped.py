"""The corpus that comes with the package, as a server searches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssmoe_embed.data import Document
from ssmoe_embed.retrieval.search import CorpusSearch
from ssmoe_embed.serving.corpora import Corpus, Entry, Found, digest, spread


class ShippedCorpus(Corpus):
    """Exact search of documents that are held in memory."""

    def __init__(self, search: CorpusSearch, name: str = "how-to answers of the package") -> None:
        """Bind a search.

        Args:
            search: Documents and vectors.
            name: For people.
        """
        self.name = name
        self._search = search
        self._rows = {document.id: row for row, document in enumerate(search.documents)}

    def __len__(self) -> int:
        return len(self._search.documents)

    def fingerprint(self) -> str:
        """Of documents and vectors."""
        vectors = self._search.vectors.double().sum(dim=0).numpy().tobytes().hex()
        return digest([vectors, *(f"{document.id}\0{document.text}" for document in self._search.documents)])

    def search(self, query: str, top: int, filters: Mapping[str, str], *, hybrid: bool = False) -> list[Found]:
        """See `Corpus.search`; filters are by `source` or `license`, and there is no hybrid search."""
        if hybrid:
            raise ValueError("Hybrid search needs an index; make one with `ssmoe index` and serve its folder.")
        for name in filters:
            if name not in {"source", "license"}:
                raise ValueError(f"filter {name!r} is not known; choose source=… or license=….")
        hits = self._search.search(query, len(self) if filters else top)
        found = [hit for hit in hits if all(getattr(hit.document, name) == value for name, value in filters.items())]
        return [Found(_entry(hit.document), hit.score, hit.document.text, None) for hit in found[:top]]

    def get(self, name: str) -> Entry | None:
        """See `Corpus.get`."""
        row = self._rows.get(name)
        return None if row is None else _entry(self._search.documents[row])

    def sample(self, most: int) -> tuple[list[Entry], np.ndarray[Any, Any]]:
        """See `Corpus.sample`."""
        positions = spread(len(self), most)
        entries = [_entry(self._search.documents[position]) for position in positions]
        return entries, self._search.vectors[positions].float().numpy()

    def vectors(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """See `Corpus.vectors`."""
        return self._search.vectors[[self._rows[name] for name in names]].float().numpy()


def _entry(document: Document) -> Entry:
    return Entry(document.id, document.title, document.text, document.source, {"license": document.license})
