"""The `SentenceTransformer` that `ssmoe_embed.load` returns."""

from __future__ import annotations

from functools import update_wrapper
from inspect import signature
from typing import Any

from sentence_transformers import SentenceTransformer

from ssmoe_embed.embedding.tokenization import check_texts

_BATCH_SIZE = list(signature(SentenceTransformer.encode).parameters).index("batch_size")
"""How many positional arguments of `encode` reach to its batch size, the model not counted."""


class EmbeddingModel(SentenceTransformer):
    """A `SentenceTransformer` that looks at its inputs before it sorts them into batches.

    So an error can name the position in the list that the caller gave. Everything else is inherited.
    """

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """See `SentenceTransformer.encode`; an input that is not a string is a `TextError` that names its position."""
        inputs: Any = args[0] if args else kwargs.get("inputs")
        if not isinstance(inputs, str | bytes | dict) and hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
            check_texts(inputs, "the inputs")
        if len(args) < _BATCH_SIZE and kwargs.get("batch_size") is None:
            kwargs["batch_size"] = getattr(self[0], "default_batch_size", None) or 32
        return super().encode(*args, **kwargs)

    def _update_default_model_id(self, model_card: str) -> str:
        """Name the model in its card, whose example uses the plain class."""
        if not self.model_card_data.model_id:
            return model_card
        return model_card.replace(self._model_card_model_id_placeholder, self.model_card_data.model_id)


update_wrapper(EmbeddingModel.encode, SentenceTransformer.encode)  # its signature and documentation
