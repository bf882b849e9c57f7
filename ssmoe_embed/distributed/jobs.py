"""What is to be encoded, how, and the worker that does it on a machine of a cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from ssmoe_embed.distributed.shards import ShardFolder
from ssmoe_embed.embedding.streaming import CHUNK_BATCHES, check_precision
from ssmoe_embed.hub.loading import load
from ssmoe_embed.search.errors import WrongModelError
from ssmoe_embed.search.fingerprint import check_model, model_fingerprint


@dataclass(frozen=True)
class ModelReference:
    """How every worker loads the model.

    Attributes:
        name: Folder (which every worker can read), hub id or recipe name.
        settings: Fields of `EmbeddingSettings`, and other keywords of `ssmoe_embed.load`, as JSON values.
        device: Where a worker runs it; by default the fastest device it has.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    def load(self) -> SentenceTransformer:
        """The model."""
        return load(self.name, device=self.device, progress=False, **self.settings)


@dataclass(frozen=True)
class Encoding:
    """How texts become vectors.

    Attributes:
        batch_size: Batch size.
        as_documents: Whether texts are documents to be searched, with the model's prompt for such.
        arguments: Further keywords of `model.encode`, as JSON values.
    """

    batch_size: int = 32
    as_documents: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.arguments)

    @property
    def chunk(self) -> int:
        """Texts that are encoded by one call of the model."""
        return self.batch_size * CHUNK_BATCHES

    def encode(self, model: SentenceTransformer, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Vectors `[B,D]` of texts, chunk by chunk, which is how `encode_stream` and an index do it in one process."""
        if not self.as_documents:
            return self._encode(model.encode, texts)
        distinct = list(dict.fromkeys(texts))  # an index encodes a text once
        rows = {text: row for row, text in enumerate(distinct)}
        return self._encode(model.encode_document, distinct)[[rows[text] for text in texts]]

    def _encode(self, encode: Callable[..., Any], texts: Sequence[str]) -> np.ndarray[Any, Any]:
        parts = [
            encode(
                list(texts[start : start + self.chunk]),
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                **self.arguments,
            )
            for start in range(0, len(texts), self.chunk)
        ]
        return np.concatenate(parts)

    def digest(self, fingerprint: Mapping[str, Any]) -> str:
        """A short text that names the model and everything here that changes vectors."""
        content = {"model": fingerprint, **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_of(reference: ModelReference) -> dict[str, Any]:
    """The fingerprint of a model, found where the model will run."""
    return model_fingerprint(reference.load())


class ShardEncoder:
    """One worker with one model: Ray Data calls it with the names of shards."""

    def __init__(
        self, folder: str, reference: ModelReference, fingerprint: Mapping[str, Any], encoding: Encoding
    ) -> None:
        """Load the model and make sure that it is the one that was meant.

        Raises:
            WrongModelError: Under that name this machine has another one.
        """
        self._folder = ShardFolder(folder)
        self._encoding = encoding
        self._model = reference.load()
        try:
            check_model(self._model, fingerprint, Path(folder))
        except WrongModelError as error:
            raise WrongModelError(f"Under the name {reference.name!r} a worker has another model. {error}") from None

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Encode shards; returns their names and how many texts each has."""
        names = [str(name) for name in batch["name"]]
        counts = []
        for name in names:
            texts = self._folder.waiting(name)
            self._folder.finish(name, self._encoding.encode(self._model, texts))
            counts.append(len(texts))
        return {"name": names, "texts": counts}
