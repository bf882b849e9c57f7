"""Exact semantic search over documents whose vectors are kept on disk between runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from platformdirs import user_cache_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

from ssmoe_embed.common.files import load_tensors, save_tensors
from ssmoe_embed.data import Document, search_folder

_PROBE = "Which of these two models made the vectors?"
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Hit:
    """One document found.

    Attributes:
        score: Its cosine similarity to the query.
        document: The document.
    """

    score: float
    document: Document


class CorpusSearch:
    """Documents with their vectors, ready to be searched."""

    def __init__(
        self,
        model: SentenceTransformer,
        documents: Sequence[Document],
        *,
        cache: Path | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        """Encode the documents, or read their vectors from disk if the same model made them.

        The vectors of the package's own corpus and model come with it.

        Args:
            model: Any sentence-transformers model.
            documents: What to search.
            cache: Folder for vectors; by default in the user's cache.
            batch_size: Texts a forward pass.
            progress: Show a progress bar.
        """
        self._model = model
        self._documents = list(documents)
        texts = [f"{document.title}. {document.text}" if document.title else document.text for document in documents]
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        name = f"{digest}-{model.get_embedding_dimension()}.safetensors"
        folder = cache or user_cache_path("ssmoe_embed") / "search"
        found = self._kept(folder / name)
        if found is None:
            found = self._kept(search_folder() / name)
        if found is None:
            found = model.encode_document(
                texts, batch_size=batch_size, show_progress_bar=progress, convert_to_tensor=True
            ).cpu()
            save_tensors(folder / name, {"vectors": found, "probe": self._probe()}, {})
        self._vectors = found

    @property
    def documents(self) -> list[Document]:
        """The documents, in the order of their vectors."""
        return self._documents

    @property
    def vectors(self) -> torch.Tensor:
        """Their vectors, `[N,D]`."""
        return self._vectors

    def search(self, query: str, top: int = 5) -> list[Hit]:
        """The documents nearest in meaning to a query, best first.

        Raises:
            ValueError: The query is empty, or `top` is less than 1.
        """
        if not query.strip():
            raise ValueError("The query is empty; say in words what you are looking for.")
        if top < 1:
            raise ValueError(f"top={top} asks for no document; choose at least 1.")
        vector = self._model.encode_query(query, show_progress_bar=False, convert_to_tensor=True).cpu()
        [found] = semantic_search(vector, self._vectors, top_k=top)
        return [Hit(hit["score"], self._documents[hit["corpus_id"]]) for hit in found]

    def _probe(self) -> torch.Tensor:
        """A vector that tells one model and its settings from others."""
        return self._model.encode_document(_PROBE, show_progress_bar=False, convert_to_tensor=True).cpu()

    def _kept(self, path: Path) -> torch.Tensor | None:
        """The vectors on disk, if there are any and this model made them."""
        try:
            tensors, _ = load_tensors(path)
        except (FileNotFoundError, ValueError):
            return None
        probe = self._probe()
        same = tensors["probe"].shape == probe.shape and torch.allclose(tensors["probe"], probe, atol=_TOLERANCE)
        return tensors["vectors"] if same else None
