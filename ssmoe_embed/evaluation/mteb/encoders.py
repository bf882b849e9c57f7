"""The encoders that mteb calls: one run of a model of this package, and any other encoder on corrupted texts."""

from __future__ import annotations

from typing import Any

from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt
from numpy.typing import NDArray

from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.mteb.passes import SharedPass
from ssmoe_embed.evaluation.tasks.corruption import TEXT_KEYS, Corruption, Tally


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
        self.tally = None if corruption is None else Tally(corruption.rate)
        self._shared, self._settings, self._corruption = shared, settings, corruption

    def encode(
        self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, prompt_type: Any = None, **kwargs: Any
    ) -> NDArray[Any]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        del hf_subset
        inputs = corrupted(inputs, self._corruption, hf_split, task_metadata, self.tally)
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


class CorruptedEncoder(AbsEncoder):
    """Any other encoder, whose texts are corrupted before it sees them."""

    def __init__(self, baseline: Any, corruption: Corruption) -> None:
        self.model = baseline
        self.mteb_model_meta = _corrupted_meta(baseline, corruption)
        self.tally = Tally(corruption.rate)
        self._corruption = corruption

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, **kwargs: Any) -> Any:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        inputs = corrupted(inputs, self._corruption, hf_split, task_metadata, self.tally)
        return self.model.encode(inputs, task_metadata=task_metadata, hf_split=hf_split, **kwargs)

    def prepare(self, task: Any) -> None:
        """Tell the baseline of the task, where it wants to know."""
        if hasattr(self.model, "prepare"):
            self.model.prepare(task)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The baseline's own."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The baseline's own."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)


class CorruptedSearch:
    """A baseline that searches texts instead of encoding them, on corrupted texts."""

    def __init__(self, baseline: Any, corruption: Corruption) -> None:
        self.model = baseline
        self.mteb_model_meta = _corrupted_meta(baseline, corruption)
        self._corruption = corruption

    def index(self, corpus: Any, **kwargs: Any) -> None:
        """See `mteb.models.SearchProtocol`."""
        self.model.index(self._dataset(corpus), **kwargs)

    def search(self, queries: Any, **kwargs: Any) -> Any:
        """See `mteb.models.SearchProtocol`."""
        return self.model.search(self._dataset(queries), **kwargs)

    def _dataset(self, data: Any) -> Any:
        keys = [key for key in TEXT_KEYS if key in data.column_names]
        apply = self._corruption.apply
        return data.map(
            lambda row: {key: apply(row[key]) for key in keys if isinstance(row[key], str)}, load_from_cache_file=False
        )


def corrupted_baseline(baseline: Any, corruption: Corruption | None) -> Any:
    """A baseline on corrupted texts; itself where there is no corruption."""
    if corruption is None:
        return baseline
    return (
        CorruptedEncoder(baseline, corruption) if hasattr(baseline, "encode") else CorruptedSearch(baseline, corruption)
    )


def corrupted(inputs: Any, corruption: Corruption | None, split: str, task_metadata: Any, tally: Tally | None) -> Any:
    """A DataLoader with its texts corrupted, where the corruption covers the split."""
    if corruption is None or not corruption.covers(split, task_metadata.eval_splits):
        return inputs
    return corruption.wrap(inputs, tally)


def _corrupted_meta(baseline: Any, corruption: Corruption) -> ModelMeta:
    meta: ModelMeta = baseline.mteb_model_meta
    experiment = dict(meta.experiment_kwargs or {}) | {"corruption": corruption.name}
    return meta.model_copy(update={"experiment_kwargs": experiment})
