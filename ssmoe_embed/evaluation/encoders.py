"""The encoders that mteb calls: one run of a model of this package, and any other encoder on corrupted texts."""

from __future__ import annotations

from typing import Any

from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt
from numpy.typing import NDArray

from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.corruption import Corruption
from ssmoe_embed.evaluation.passes import SharedPass


class MethodEncoder(AbsEncoder):
    """The vectors of one run, made from a forward pass that other runs share."""

    def __init__(
        self,
        shared: SharedPass,
        model: EmbeddingModel,
        settings: EmbeddingSettings,
        meta: ModelMeta,
        corruption: Corruption | None = None,
    ) -> None:
        self.model = model
        self.mteb_model_meta = meta
        self._shared, self._settings, self._corruption = shared, settings, corruption

    def encode(
        self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, prompt_type: Any = None, **kwargs: Any
    ) -> NDArray[Any]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        del hf_subset
        inputs = corrupted(inputs, self._corruption, hf_split, task_metadata)
        texts = [text for batch in inputs for text in batch["text"]]
        prompts = {name: text for name, text in self.model.prompts.items() if text}
        prompt = get_prompt(prompts, task_metadata, prompt_type) or prompts.get(self.model.default_prompt_name or "")
        return self._shared.encode(
            texts,
            self._settings,
            prompt=prompt or "",
            batch_size=kwargs.get("batch_size", 32),
            progress=kwargs.get("show_progress_bar", False),
        )


class CorruptedPeer(AbsEncoder):
    """Any other encoder, whose texts are corrupted before it sees them."""

    def __init__(self, peer: Any, corruption: Corruption) -> None:
        self.model = peer
        self._corruption = corruption
        meta = peer.mteb_model_meta
        experiment = dict(meta.experiment_kwargs or {}) | {"corruption": corruption.name}
        self.mteb_model_meta = meta.model_copy(update={"experiment_kwargs": experiment})

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, **kwargs: Any) -> Any:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        inputs = corrupted(inputs, self._corruption, hf_split, task_metadata)
        return self.model.encode(inputs, task_metadata=task_metadata, hf_split=hf_split, **kwargs)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The peer's own."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The peer's own."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)


def corrupted(inputs: Any, corruption: Corruption | None, split: str, task_metadata: Any) -> Any:
    """A DataLoader with its texts corrupted, where the corruption covers the split."""
    if corruption is None or not corruption.covers(split, task_metadata.eval_splits):
        return inputs
    return corruption.wrap(inputs)
