"""Training-free baselines by name, as encoders of an evaluated model that mteb calls, and those fitted on sample texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.embedding.calibration import BlockCalibration, check_sample
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, ForwardSettings
from ssmoe_embed.evaluation.baselines.hidden_states import (
    AlignedWVA,
    Echo,
    EmbedFilter,
    MeanPooling,
    MetaEOL,
    ModelBaseline,
    TokenPrepending,
    sample_texts,
)
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runs import Run, prompt_label
from ssmoe_embed.evaluation.tasks.corruption import Corruption
from ssmoe_embed.routing.derived import CodebookRouting, CodebookSettings
from ssmoe_embed.routing.policies import SpectralMix
from ssmoe_embed.routing.sites import recording, routed


class IdfRouter(ModelBaseline):
    """The routers' scores at the last token, each expert's weighed by how rarely it is chosen.

    The weight is `-log` of the expert's mean share of its layer's scores over sample texts, as a word's is of the share of
    texts that have it. A fitted calibration gives every feature the same spread again, so it undoes the weights.

    An idea of ours; https://arxiv.org/abs/2601.03425 observed that some experts are chosen for nearly everything.
    """

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        return self._scores(tokens) * self.weights

    @cached_property
    def weights(self) -> torch.Tensor:
        """What each expert's score is multiplied by, `[ΣE]`."""
        sample = sorted(sample_texts(), key=len)
        parts = [self._scores(self.tokens(sample[start : start + 32])) for start in range(0, len(sample), 32)]
        mean = torch.cat(parts).double().mean(dim=0)  # [ΣE]
        sizes = [self.encoder.family.expert_count(layer) for layer in self.encoder.layers]
        shares = torch.cat([one / one.sum() for one in torch.split(mean, sizes)])
        return -shares.clamp_min(torch.finfo(torch.float32).tiny).log().float()

    def _scores(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.encoder.signal(self.read(tokens), RoutingSignal.SCORES, SpectralMix())


class Codes(ModelBaseline):
    """The share of a text's tokens, template included, that each code of each layer has: see `routing/derived.py`.

    After VQMoE, https://arxiv.org/abs/2411.19402.
    """

    @cached_property
    def book(self) -> CodebookRouting:
        """The codes of each layer."""
        return CodebookSettings().made(self.encoder.model, self.encoder.tokenizer)

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        book = self.book  # made before the model is routed below
        order = tokens["attention_mask"].argsort(dim=1, descending=True, stable=True)  # [B,T], real tokens first
        ids, mask = (tokens[name].gather(1, order) for name in ("input_ids", "attention_mask"))
        with recording(mask.flatten().nonzero().squeeze(1)) as taken, routed(None):
            self.encoder.model(input_ids=ids, attention_mask=mask, use_cache=False)
        sizes = mask.sum(dim=1).tolist()
        by_text = {layer: torch.split(inputs, sizes) for layer, inputs in taken.inputs.items()}
        texts = ({layer: parts[text] for layer, parts in by_text.items()} for text in range(len(sizes)))
        return torch.stack([book.histogram(inputs).float() for inputs in texts])


MODEL_BASELINES: dict[str, Callable[[SSMoE, ForwardSettings], ModelBaseline]] = {
    "mean": MeanPooling,
    "echo": Echo,
    "metaeol": MetaEOL,
    "token-prepending": TokenPrepending,
    "embed-filter": EmbedFilter,
    "aligned-wva": AlignedWVA,
    "idf-router": IdfRouter,
    "codes": Codes,
}
"""What `evaluate` calls a baseline → what makes it of a model."""


class ModelBaselineEncoder(AbsEncoder):
    """A training-free baseline of a model of this package.

    Vectors are compared as they are, which is how the papers do it, unless a run names a calibration; that is then fitted
    on sample texts. A sentence-transformers prompt of the model is not used.
    """

    def __init__(
        self, model: EvaluatedModel, name: str, run: Run | None = None, *, sample: Sequence[str] | None = None
    ) -> None:
        """Make one.

        Args:
            model: The model; its own template is taken where the baseline is not a template itself.
            name: One of `MODEL_BASELINES`.
            run: Template and settings to change; its method and corruption have no meaning here.
            sample: Texts that a calibration is fitted on; by default some of those that come with the package.

        Raises:
            ValueError: No baseline has that name, or a setting does not fit.
        """
        if name not in MODEL_BASELINES:
            raise ValueError(unknown("baseline of a model", name, MODEL_BASELINES))
        run = Run() if run is None else run
        settings = Run("smoe", run.prompt, None, run.overrides).settings(model.own)
        self.calibration = settings.calibration if "calibration" in run.overrides else Calibration.NONE
        if self.calibration is Calibration.BATCH:
            raise ValueError(
                f"calibration='batch' makes a vector depend on its neighbours; {name} takes none, standardize or whiten."
            )
        self.baseline = MODEL_BASELINES[name](model.model[0], settings.forward)
        self._factors: BlockCalibration | None = None
        self._sample = sample
        self.mteb_model_meta = self._meta(model, name, run)

    def _meta(self, model: EvaluatedModel, name: str, run: Run) -> ModelMeta:
        """The record of its results, which are kept under the model's name."""
        prompt = self.baseline.forward.prompt
        changed = Run("smoe", run.prompt, None, run.overrides).deviations(model.own)
        kept: dict[str, Any] = {
            key: value for key, value in changed.items() if key in ("max_seq_length", "hidden_layer", "instruction")
        }
        if self.calibration is not Calibration.NONE:
            kept["calibration"] = str(self.calibration)
        own = model.meta(Run("smoe", overrides={"calibration": "none"}))
        return own.model_copy(
            update={
                "loader": None,
                "loader_kwargs": {"method": name, "prompt": prompt},
                "experiment_kwargs": {**kept, **model.loading, "method": name, "prompt": prompt_label(prompt)},
                "embed_dim": None,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Any, *, batch_size: int = 32, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`; texts that occur several times are read once."""
        texts = [text for batch in inputs for text in batch["text"]]
        found = self.vectors(texts, batch_size, progress=bool(kwargs.get("show_progress_bar", False)))
        return found.numpy()

    def vectors(self, texts: Sequence[str], batch_size: int = 32, *, progress: bool = False) -> torch.Tensor:
        """The vectors of texts, float32 `[n,D]`.

        Args:
            texts: At least one.
            batch_size: Texts per forward pass.
            progress: Show a progress bar.
        """
        if self.calibration is not Calibration.NONE and self._factors is None:
            sample = sorted(sample_texts() if self._sample is None else check_sample(self._sample), key=len)
            self._factors = BlockCalibration.fit(self._vectors(sample, batch_size), self.calibration)
        different = sorted(dict.fromkeys(texts), key=len, reverse=True)
        rows = dict(zip(different, self._vectors(different, batch_size, progress=progress), strict=True))
        found = torch.stack([rows[text] for text in texts])
        return found if self._factors is None else self._factors.apply(found)

    def _vectors(self, texts: Sequence[str], batch_size: int, *, progress: bool = False) -> torch.Tensor:
        """Uncalibrated vectors on the CPU.

        Raises:
            ValueError: One is not finite.
        """
        parts = []
        starts = range(0, len(texts), batch_size)
        for start in tqdm(starts, desc="Reading", unit="batch", leave=False, disable=not progress):
            parts.append(self.baseline.features(texts[start : start + batch_size]).float().cpu())
            if not bool(torch.isfinite(parts[-1]).all()):
                dtype = self.baseline.encoder.model.dtype
                raise ValueError(f"A vector is not finite in {dtype}; load the model in bfloat16 or float32.")
        return torch.cat(parts)


def model_baselines(
    model: EvaluatedModel, name: str, runs: Sequence[Run]
) -> list[tuple[ModelBaselineEncoder, list[Corruption | None]]]:
    """A baseline of a model under the templates and settings of some runs, each with the corruptions that it is to meet."""
    made: dict[Run, ModelBaselineEncoder] = {}
    found: dict[str | None, tuple[ModelBaselineEncoder, dict[Corruption | None, None]]] = {}
    for run in runs:
        plain = replace(run, method=None, corruption=None)
        if plain not in made:
            made[plain] = ModelBaselineEncoder(model, name, plain)
        encoder = made[plain]
        found.setdefault(encoder.mteb_model_meta.experiment_name, (encoder, {}))[1][run.on_texts] = None
    return [(encoder, list(corruptions)) for encoder, corruptions in found.values()]
