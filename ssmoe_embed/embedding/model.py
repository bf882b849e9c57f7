"""The `SentenceTransformer` that `ssmoe_embed.load` returns."""

from __future__ import annotations

import copy
from functools import update_wrapper
from inspect import signature
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings
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
        is_list = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
        if is_list and not isinstance(inputs, str | bytes | dict) and self.modalities == ["text"]:
            check_texts(inputs, "the inputs")
        if len(args) < _BATCH_SIZE and kwargs.get("batch_size") is None:
            kwargs["batch_size"] = getattr(self[0], "default_batch_size", None) or 32
        if isinstance(self[0], SSMoE) and self[0].settings.calibration is Calibration.BATCH:
            return self._encode_in_order(*args, **kwargs)
        return super().encode(*args, **kwargs)

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """See `SentenceTransformer.preprocess`; a module of this package looks at its inputs itself.

        So to a text model a string is a text, even if it names a picture's file, and texts and pictures may share a batch.
        """
        if inputs and type(self[0]).__module__ == SSMoE.__module__:
            return self[0].preprocess(inputs, prompt=prompt, **kwargs)
        return super().preprocess(inputs, prompt=prompt, **kwargs)

    def _encode_in_order(self, *args: Any, **kwargs: Any) -> Any:
        """See `encode`: batches of texts as they come, since vectors depend on their batch.

        Sentence-transformers sorts texts by length before it batches them; the paper's release does not.
        """
        given = signature(SentenceTransformer.encode).bind(self, *args, **kwargs).arguments
        del given["self"]
        given |= given.pop("kwargs", {})
        inputs, size = given.pop("inputs"), given["batch_size"]
        if isinstance(inputs, str) or len(inputs) <= size:
            return super().encode(inputs, **given)
        parts = [super(EmbeddingModel, self).encode(inputs[i : i + size], **given) for i in range(0, len(inputs), size)]
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts)
        return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [one for part in parts for one in part]

    def using(self, settings: EmbeddingSettings | None = None, **changes: Any) -> EmbeddingModel:
        """A view of the same loaded model with other settings; this one stays as it is. See `SSMoE.using`."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._modules["0"] = self[0].using(settings, **changes)
        other.model_card_data = copy.copy(self.model_card_data)
        other.model_card_data.register_model(other)
        other[0].on_model_ready(other)
        return other

    def _update_default_model_id(self, model_card: str) -> str:
        """Name the model in its card, whose example uses the plain class."""
        if not self.model_card_data.model_id:
            return model_card
        return model_card.replace(self._model_card_model_id_placeholder, self.model_card_data.model_id)


update_wrapper(EmbeddingModel.encode, SentenceTransformer.encode)  # its signature and documentation
