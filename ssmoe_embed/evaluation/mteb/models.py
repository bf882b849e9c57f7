"""Embedding models as mteb sees them: the encoders that it calls, with a name, a revision and a record."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt
from numpy.typing import NDArray

from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings
from ssmoe_embed.evaluation.mteb.passes import SharedPass, module_of
from ssmoe_embed.evaluation.mteb.records import loading_changes, origin, revision_of, similarity, size
from ssmoe_embed.evaluation.mteb.runs import Run, prompt_label
from ssmoe_embed.evaluation.tasks.corruption import TEXT_KEYS, Corruption, Tally
from ssmoe_embed.hub.models import load
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings


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


@dataclass(frozen=True)
class EvaluatedModel:
    """A loaded model under the name and revision that its results are kept by.

    Attributes:
        name: `organisation/model`.
        revision: Its hub commit, or a digest of what determines its vectors.
        model: The model.
        own: Its saved settings.
        loading: How it was loaded, where that changes its numbers.
    """

    name: str
    revision: str
    model: EmbeddingModel
    own: EmbeddingSettings
    loading: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: EmbeddingModel, name: str | None = None, *, revision: str | None = None, **loading: Any
    ) -> EvaluatedModel:
        """A model that is loaded already.

        Args:
            model: The model, with the settings that count as its own.
            name: What it was loaded by, or `organisation/model`; by default the name of its base model.
            revision: The hub revision of that name it was loaded at, if not the default branch.
            **loading: See `EvaluatedModel.loading`.
        """
        module = module_of(model)
        chosen, settings = name or module.source.name_or_path, module.settings
        found = revision_of(chosen, module, settings, revision=revision)
        return cls(model_name(chosen), found, model, settings, loading)

    @classmethod
    def load(cls, name: str | Path, *, hidden_layer: int | None = None, **kwargs: Any) -> EvaluatedModel:
        """Load a model by folder, hub id or recipe name.

        Args:
            name: See `ssmoe_embed.load`.
            hidden_layer: Read another layer than the model's own.
            **kwargs: For `ssmoe_embed.load`.
        """
        model = load(name, **kwargs)
        module = module_of(model)
        loading = loading_changes(kwargs.get("model_kwargs"), kwargs.get("load_in_4bit"), module.source.quantization)
        hub = {key: kwargs.get(key) for key in ("revision", "cache_folder")}
        own = module.settings
        made = cls(model_name(str(name)), revision_of(str(name), module, own, **hub), model, own, loading)
        if hidden_layer is None or hidden_layer == made.own.hidden_layer:
            return made
        known = (made.name, made.revision)
        del model, module, made  # or two base models would be in memory
        gc.collect()
        other = load(name, hidden_layer=hidden_layer, calibration="none", **kwargs)  # runs fit what they need of it
        other[0].settings = other[0].settings.changed(calibration=own.calibration)
        return cls(*known, other, own, loading)

    def settings(self, run: Run) -> EmbeddingSettings:
        """The settings of a run of this model."""
        return run.settings(self.own)

    def meta(self, run: Run, *, batch_size: int = 32) -> ModelMeta:
        """The record of one run for mteb.

        Args:
            run: The run.
            batch_size: Counts only where vectors depend on it, that is with `calibration="batch"`.
        """
        settings = self.settings(run)
        loading = dict(self.loading)
        if settings.calibration is Calibration.BATCH:
            loading["batch_size"] = batch_size
        experiment = run.experiment(self.own, **loading)
        own_template = prompt_label(settings.prompt) != settings.prompt
        keywords = settings.as_dict() | ({"template": settings.prompt} if own_template else {})
        view = self.model.using(settings)
        return ModelMeta(
            loader=load_encoder,
            loader_kwargs=keywords,
            name=self.name,
            revision=self.revision,
            experiment_kwargs=experiment,
            embed_dim=view.get_embedding_dimension(),
            max_tokens=view[0].max_seq_length,
            similarity_fn_name=similarity(view),
            **size(view),
            **origin(self.name, view),
        )


def load_encoder(
    name: str,
    revision: str | None = None,
    device: str | None = None,
    *,
    corruption: str | None = None,
    template: str | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    load_in_4bit: bool | None = None,
    **settings: Any,
) -> MethodEncoder:
    """The encoder that a record of `EvaluatedModel.meta` describes; what mteb calls to load the model by its name.

    Args:
        name: Folder, hub id or recipe name.
        revision: A commit of the hub; any other revision is a digest of what was found by name, and not used.
        device: Where to run.
        corruption: A corruption's name.
        template: The prompt, where it is a template of one's own.
        batch_size: Not used: mteb passes it when it encodes.
        dtype: For the base model.
        load_in_4bit: For the base model.
        **settings: Fields of `EmbeddingSettings`.
    """
    del batch_size
    commit = revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else None
    given = {"dtype": dtype, "load_in_4bit": load_in_4bit}
    loading = {key: value for key, value in given.items() if value is not None}
    prompt = {"prompt": template} if template is not None else {}
    model = load(
        name, device=device, revision=commit, model_kwargs=loading or None, progress=False, **(settings | prompt)
    )
    evaluated = EvaluatedModel.of(model, name, revision=commit, **loading)
    run = Run(corruption=None if corruption is None else Corruption.parse(corruption))
    shared = SharedPass(model, [evaluated.own])
    return MethodEncoder(shared, model, evaluated.own, evaluated.meta(run), run.on_texts)


def model_name(name: str) -> str:
    """The name that results are kept by, `organisation/model`: a folder's is `local/` and its last part."""
    folder = Path(name)
    if folder.is_dir():
        return f"local/{folder.resolve().name}"
    return name if "/" in name else f"hub/{name}"


ROUTERS = "routers"
"""Folder, among the results, of the spectral routers that were made for them."""


class SpectralVariants:
    """A model's variants with other spectral routers: views of one loaded base model.

    Results of a variant are kept under the model's own name, told apart by the settings that differ from those of its own
    spectral routers.
    """

    def __init__(self, model: EvaluatedModel, folder: str | Path, *, progress: bool = True) -> None:
        """Start with a model as it is; spectral routers that are made are kept in `folder`."""
        self.model, self.progress = model, progress
        self.folder = Path(folder) / model.name.replace("/", "__") / model.revision
        self._module: SSMoE = model.model[0]

    def select(self, spectral: Mapping[str, Any]) -> EvaluatedModel:
        """A variant.

        Args:
            spectral: Fields of `SpectralSettings`; the others are those of the model's own spectral routers.

        Raises:
            ValueError: A value is not allowed, or routers on disk are broken or another model's.
        """
        own = self._module.routers.settings if self._module.routers else None
        wanted, before = replace(own or SpectralSettings(), **spectral), own.as_dict() if own else {}
        deviations = {name: value for name, value in wanted.as_dict().items() if value != before.get(name)}
        if not spectral or not deviations:
            return self.model
        view = self.model.model.using(routers=self._made(wanted, deviations))
        return replace(self.model, model=view, loading=self.model.loading | deviations)

    def _made(self, settings: SpectralSettings, deviations: Mapping[str, Any]) -> SpectralRouters:
        """Spectral routers of these settings, from disk or made now."""
        path = self.folder / f"{','.join(f'{name}={value}' for name, value in deviations.items())}.safetensors"
        if not path.is_file():
            source = self._module.source
            given = settings.as_dict() | source.hub.keywords
            SpectralRouters.from_checkpoint(source.name_or_path, progress=self.progress, **given).save(path)
        routers = SpectralRouters.load(path)
        routers.check(self._module.model)
        return routers
