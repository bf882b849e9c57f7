"""What runs on the machines of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmoe_embed.distributed.jobs import Encoding, ModelReference
from ssmoe_embed.distributed.shards import ShardFolder
from ssmoe_embed.search.errors import WrongModelError
from ssmoe_embed.search.fingerprint import check_model, model_fingerprint


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
