"""`SemanticIndex`: documents on disk, found by meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from ssmoe_embed.data import Document
from ssmoe_embed.search.fingerprint import check_model, describe, model_fingerprint
from ssmoe_embed.search.generation import Generation
from ssmoe_embed.search.hits import Explanation, Hit, explain, with_snippets
from ssmoe_embed.search.hybrid import SearchMode
from ssmoe_embed.search.kinds import IndexKind
from ssmoe_embed.search.manifest import RECALL, DamagedIndexError, Manifest
from ssmoe_embed.search.nearest import dot
from ssmoe_embed.search.vectors import Array, VectorType, chunks, encoder, given, paired, unit
from ssmoe_embed.search.writing import AddCounts, Writer, create_files, open_writer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_CHUNK_BATCHES = 32
"""Batches read ahead, so that texts of like length share a batch; what an interruption costs at most."""


class SemanticIndex:
    """Documents with their vectors in a folder: to be added to, changed and searched.

    Every change makes a new generation, which replaces the last one at once; whatever is interrupted, at whatever moment,
    leaves the last one. Readers and one writer may work at the same time, in any number of processes; an open index stays
    at its generation until `refresh`. Threads may share one.
    """

    def __init__(self, folder: str | Path, model: SentenceTransformer | None = None) -> None:
        """Use `create` or `open`."""
        self.folder = Path(folder)
        self.model = model
        self._now = Generation.open(self.folder)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model: SentenceTransformer,
        *,
        kind: str = "auto",
        dtype: str = "float32",
        reference: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make an empty index.

        Args:
            folder: Where; it may exist if there is no index in it.
            model: Any sentence-transformers model; its fingerprint is kept.
            kind: An `IndexKind`: auto, flat, hnsw, ivf, ivfpq, sq8 or binary.
            dtype: How a number of a vector is stored: float32 or float16.
            reference: Kept for whoever opens the index: how the model was loaded (`name`, and `settings` for
                `ssmoe_embed.load`), and what the corpus is called (`corpus`).

        Raises:
            FileExistsError: There is an index in the folder already.
            ValueError: `kind` or `dtype` is not known, or the model's vectors depend on their batch.
        """
        folder = Path(folder)
        wanted, number = IndexKind.parse(kind, "kind"), VectorType.parse(dtype, "dtype")
        create_files(folder, wanted, number, model_fingerprint(model), reference or {})
        return cls(folder, model)

    @classmethod
    def open(cls, folder: str | Path, model: SentenceTransformer | None = None) -> Self:
        """Open an index.

        Args:
            folder: Its folder.
            model: The model it was made with; None to look at it, or to search it with vectors.

        Raises:
            FileNotFoundError: There is no index.
            DamagedIndexError: A file is missing, cut short, or does not belong to the others.
            WrongModelError: The model is another one.
        """
        index = cls(folder, model)
        if model is not None:
            check_model(model, index._now.manifest.model, index.folder)
        return index

    def refresh(self) -> bool:
        """Go on to the newest generation; returns whether there was one."""
        if Manifest.read(self.folder).generation == self._now.manifest.generation:
            return False
        self._now = Generation.open(self.folder)  # searches under way keep the old one
        return True

    def __len__(self) -> int:
        return self._now.manifest.documents

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r}: {len(self):,} documents, vectors by {describe(self.fingerprint)}>"
        )

    def __contains__(self, id: str) -> bool:  # noqa: A002 (a document's own word)
        return bool(self._now.store.by_ids([id]))

    def __getitem__(self, id: str) -> Document:  # noqa: A002
        return self._now.one(id)[1]

    @property
    def name(self) -> str:
        """What it is called: as its reference says, or else as its folder."""
        return str(self._now.manifest.reference.get("corpus") or self.folder.resolve().name)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of the model it was made with."""
        return dict(self._now.manifest.model)

    def documents(self, offset: int = 0, limit: int | None = None) -> list[Document]:
        """Documents in the order in which they were added."""
        return self._now.store.documents(offset, limit)

    def vectors(self, which: Sequence[str] | slice | None = None) -> Array:
        """Unit vectors of documents `[n,D]`, float32.

        Args:
            which: Ids, or a slice of the documents in the order of `documents`; None for all.

        Raises:
            KeyError: An id is not there.
        """
        return self._now.vectors_of(which)

    def info(self) -> dict[str, Any]:
        """What the manifest says, with what the files take."""
        return self._now.info()

    def filter_keys(self) -> list[str]:
        """What `search` can filter by."""
        return self._now.store.facet_keys()

    def ids(self, filters: Mapping[str, Any]) -> list[str]:
        """Ids of the documents that pass filters, as `search` takes them."""
        self._now.check(1, filters)
        return self._now.store.ids(filters)

    def verify(self) -> list[str]:
        """Read everything on disk and compare it with its checksums; returns what is wrong, in words."""
        return self._now.verify()

    def add(
        self,
        documents: Iterable[Document],
        *,
        batch_size: int = 32,
        progress: bool = True,
        recall: float = RECALL,
        prune: bool = False,
    ) -> AddCounts:
        """Encode and add documents; those of an id that is there replace it.

        Memory does not grow with their number. Interrupted, it leaves the index as it was; called again, it does not encode
        again what it has encoded. A text that is there already, under whatever id, is not encoded either.

        Args:
            documents: The documents; one that has `size` and `position`, as `read_documents` gives, fills the bar.
            batch_size: Texts per forward pass.
            progress: Show progress bars.
            recall: What an approximate index is to reach.
            prune: Remove all documents that are not among these.

        Raises:
            BusyIndexError: Somebody else is writing.
            TypeError: One of them is no `Document`.
            ValueError: The index was opened without a model.
        """
        encode = encoder(self._model(), batch_size)
        with self._writer(recall, progress) as writer:
            for chunk in chunks(documents, batch_size * _CHUNK_BATCHES, progress):
                writer.add(chunk, encode)
            if prune:
                writer.prune()
        return writer.counts

    def add_vectors(
        self,
        documents: Iterable[Document],
        vectors: Iterable[Any],
        *,
        progress: bool = False,
        recall: float = RECALL,
        prune: bool = False,
    ) -> AddCounts:
        """Add documents with vectors that the same model made elsewhere, one for each in their order, of any length but 0.

        The rest is as in `add`.

        Raises:
            TypeError: A document is no `Document`.
            ValueError: There are fewer vectors than documents or more, or they are not of the index's dimension.
        """
        pairs = paired(documents, vectors)
        with self._writer(recall, progress) as writer:
            while chunk := list(islice(pairs, 1024)):
                writer.add([document for document, _ in chunk], given(chunk))
            if prune:
                writer.prune()
        return writer.counts

    def delete(self, ids: Iterable[str], *, progress: bool = False, recall: float = RECALL) -> int:
        """Remove documents; ids that are not there are passed over. Returns how many there were."""
        with self._writer(recall, progress) as writer:
            writer.delete(list(ids))
        return writer.counts.removed

    def rebuild(self, *, kind: str | None = None, progress: bool = True, recall: float = RECALL) -> None:
        """Throw out what no document uses and rebuild the approximate index, as another `IndexKind` if `kind` names one."""
        wanted = None if kind is None else IndexKind.parse(kind, "kind")
        with open_writer(self.folder) as writer:
            writer.compact(kind=wanted)
            writer.publish(recall=recall, progress=progress, rebuild=True)
        self.refresh()

    @contextmanager
    def _writer(self, recall: float, progress: bool) -> Iterator[Writer]:
        """A writer whose changes are published after the block."""
        with open_writer(self.folder) as writer:
            if writer.manifest.model != self._now.manifest.model:
                raise DamagedIndexError(f"{self.folder} holds another index by now; open it again.")
            yield writer
            if writer.changed:
                writer.publish(recall=recall, progress=progress)
        self.refresh()

    def _model(self) -> SentenceTransformer:
        if self.model is None:
            raise ValueError(
                f"The index in {self.folder} was opened without a model; open it with "
                "SemanticIndex.open(folder, model) to encode texts."
            )
        return self.model

    # --- searching ------------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        top: int = 10,
        *,
        filters: Mapping[str, Any] | None = None,
        mode: str = "hybrid",
        snippets: bool = False,
    ) -> list[Hit]:
        """The documents that fit a query best, best first.

        Args:
            query: What to look for.
            top: How many documents.
            filters: For each key of the metadata (or `source`, or `id`) the value that a document must have, or a list of
                values of which it must have one; `parse_filters` makes patterns and ranges.
            mode: A `SearchMode`: hybrid compares meaning and words, vectors and words one of them.
            snippets: Find the best sentence of each hit, which encodes its sentences.

        Raises:
            ValueError: The query is blank, `top` is less than 1, the mode or a filter's key is not known.
        """
        return self.search_many([query], top, filters=filters, mode=mode, snippets=snippets)[0]

    def search_many(
        self,
        queries: Sequence[str],
        top: int = 10,
        *,
        filters: Mapping[str, Any] | None = None,
        mode: str = "hybrid",
        snippets: bool = False,
    ) -> list[list[Hit]]:
        """`search` for several queries, which share a forward pass."""
        chosen = SearchMode.parse(mode, "mode")
        if any(not text.strip() for text in queries):
            raise ValueError("The query is empty; say in words what you are looking for.")
        if not queries:
            return []
        now = self._now
        now.check(top, filters)
        vectors = self.encode_queries(queries) if snippets or chosen is not SearchMode.WORDS else None
        if vectors is None or chosen is SearchMode.WORDS:
            found = [now.search_words(text, top, filters) for text in queries]
        elif chosen is SearchMode.HYBRID:
            found = now.search_hybrid(vectors, queries, top, filters)
        else:
            found = now.search(vectors, top, filters)
        if vectors is not None and snippets:
            found = [with_snippets(self._model(), vector, hits) for vector, hits in zip(vectors, found, strict=True)]
        return found

    def search_vectors(
        self, vectors: Any, top: int = 10, *, filters: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The nearest documents to each of the vectors `[Q,D]`, which need not be of unit length."""
        now = self._now
        now.check(top, filters)
        return now.search(unit(np.atleast_2d(vectors)), top, filters)

    def search_like(self, image: Any, top: int = 10, *, filters: Mapping[str, Any] | None = None) -> list[Hit]:
        """The documents, pictures or texts, that are most like a picture: a path, a PIL image, or an array; best first.

        The rest is as in `search`.

        Raises:
            ImageError: The picture cannot be read.
            ValueError: The model reads texts only, or the index was opened without one.
        """
        if self.model is None or "image" not in getattr(self.model, "modalities", ()):
            raise ValueError(
                f"The index in {self.folder} cannot be searched by an image: its model reads texts only. Make it with one "
                "that reads images, such as ssmoe/tiny-clip."
            )
        vectors = self.model.encode_query([{"image": image}], show_progress_bar=False, convert_to_numpy=True)
        return self.search_vectors(vectors, top, filters=filters)[0]

    def encode_queries(self, queries: Sequence[str]) -> Array:
        """Unit vectors of queries, float32 `[Q,D]`.

        Raises:
            ValueError: A query is blank, or the index was opened without a model.
        """
        if any(not text.strip() for text in queries):
            raise ValueError("The query is empty; say in words what you are looking for.")
        model = self._model()
        return unit(model.encode_query(list(queries), show_progress_bar=False, convert_to_numpy=True))

    def explain(self, query: str, id: str) -> Explanation:  # noqa: A002
        """How much each block of the vector (hidden state, routing of each layer) contributes to a document's score.

        Raises:
            KeyError: There is no document of that id.
            ValueError: The query is blank, or the model has no such blocks.
        """
        row, _ = self._now.one(id)
        [vector] = self.encode_queries([query])
        stored = np.asarray(self._now.vectors[row])
        return explain(self._model(), vector, stored, id, float(dot(stored[None], vector)[0]))
