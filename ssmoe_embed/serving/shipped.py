"""The corpus that comes with the package, as a server searches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.data import Document
from ssmoe_embed.search import documents as semantic
from ssmoe_embed.search.exact import CorpusSearch
from ssmoe_embed.search.snippets import with_snippets
from ssmoe_embed.serving.corpora import Corpus, Entry, Found, Sample, digest, spread
from ssmoe_embed.serving.indexed import entry_of, found_of

_FILTERS = ("source", "license")


class ShippedCorpus(Corpus):
    """Exact search of documents that are held in memory."""

    def __init__(
        self, model: SentenceTransformer, search: CorpusSearch, name: str = "how-to answers of the package"
    ) -> None:
        """Bind a search.

        Args:
            model: The model that `search` uses.
            search: Documents and vectors.
            name: For people.
        """
        self.name = name
        self._model = model
        self._search = search
        self._rows = {document.id: row for row, document in enumerate(search.documents)}

    def __len__(self) -> int:
        return len(self._search.documents)

    def search(
        self, query: str, top: int, filters: Mapping[str, Sequence[str]], *, hybrid: bool = False, snippets: bool = True
    ) -> list[Found]:
        """See `Corpus.search`; filters are by `source` or `license`, and there is no hybrid search."""
        if hybrid:
            raise ValueError("Hybrid search needs an index; make one with `ssmoe index` and serve its folder.")
        for name in filters:
            if name not in _FILTERS:
                raise ValueError(unknown("filter", name, _FILTERS))
        hits = self._search.search(query, len(self) if filters else top)
        found = [hit for hit in hits if all(getattr(hit.document, name) in filters[name] for name in filters)]
        plain = [semantic.Hit(_plain(hit.document), hit.score, hit.score) for hit in found[:top]]
        if not snippets:
            return [found_of(hit) for hit in plain]
        vector = self._model.encode_query(query, show_progress_bar=False, convert_to_numpy=True)
        return [found_of(hit) for hit in with_snippets(self._model, vector, plain)]

    def get(self, name: str) -> Entry | None:
        """See `Corpus.get`."""
        row = self._rows.get(name)
        return None if row is None else _entry(self._search.documents[row])

    def sample(self, most: int) -> Sample:
        """See `Corpus.sample`."""
        positions = spread(len(self), most)
        entries = [_entry(self._search.documents[position]) for position in positions]
        total = self._search.vectors.double().sum(dim=0).numpy().tobytes().hex()
        known = digest([total, *(f"{document.id}\0{document.text}" for document in self._search.documents)])
        return Sample(entries, self._search.vectors[positions].float().numpy(), known)

    def vectors(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """See `Corpus.vectors`."""
        return self._search.vectors[[self._rows[name] for name in names]].float().numpy()


def _plain(document: Document) -> semantic.Document:
    """A document as an index holds it."""
    return semantic.Document(
        document.id, document.text, {"license": document.license}, document.title or None, document.source or None
    )


def _entry(document: Document) -> Entry:
    return entry_of(_plain(document))
