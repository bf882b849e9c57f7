"""Training-free baselines by name, as encoders of an evaluated model that mteb calls.

Those that use the model's unembedding or its attention are here, those that pool or prompt in `pooled.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from ssmoe_embed.checkpoints.formats import read_weight
from ssmoe_embed.checkpoints.shards import Checkpoint
from ssmoe_embed.common.choices import unknown
from ssmoe_embed.embedding.base_model import BaseModelSource
from ssmoe_embed.embedding.calibration import BlockCalibration
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, ForwardSettings
from ssmoe_embed.evaluation.baselines.pooled import (
    Codes,
    Echo,
    IdfRouter,
    MeanPooling,
    MetaEOL,
    ModelBaseline,
    TokenPrepending,
    sample_texts,
)
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runs import Run, prompt_label
from ssmoe_embed.evaluation.tasks.corruption import Corruption

_HEAD = "lm_head.weight"


class EmbedFilter(ModelBaseline):
    """The last hidden state in the middle half of the unembedding's spectrum: `H/2` numbers.

    The directions of the largest and of the smallest singular values, which write frequent tokens that say little, are left
    out, as many of each, as the authors' code does.
    """

    def __init__(self, encoder: Encoder, forward: ForwardSettings, unembedding: Callable[[], torch.Tensor]) -> None:
        """Bind a model.

        Args:
            encoder: See `ModelBaseline`.
            forward: Likewise.
            unembedding: Reads `W_U [V,H]`, when it is needed.
        """
        super().__init__(encoder, forward)
        self._unembedding = unembedding

    @cached_property
    def basis(self) -> torch.Tensor:
        """The directions that are kept, `[H//2,H]`."""
        return middle_directions(self._unembedding())

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        hidden = self.read(tokens).hidden  # [B,H]
        return hidden @ self.basis.to(hidden.device).T


class AlignedWVA(ModelBaseline):
    """What attention adds to the residual stream at the last token, the mean over the later half of the layers.

    That is the values of all tokens, weighed by the last token's attention to them and brought into the stream's space by
    the output projection. Which layers are pooled is not in what we could read of the paper; the half is ours.
    """

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        family, model = self.encoder.family, self.encoder.model
        layers = list(family.decoder(model).layers)
        found = [
            part
            for layer in layers[len(layers) // 2 :]
            for name, part in layer.named_children()
            if family.is_attention(layer, name) and any(isinstance(one, nn.Linear) for one in part.modules())
        ]
        last = tokens["attention_mask"].sum(dim=1) - 1  # [B], where the model is given padding on the right
        with _outputs(found, last, self.encoder.hidden_size) as outputs:
            device = self.read(tokens).hidden.device
        return torch.stack([one.to(device) for one in outputs]).mean(dim=0)  # [B,H]


@contextmanager
def _outputs(parts: list[nn.Module], last: torch.Tensor, size: int) -> Iterator[list[torch.Tensor]]:
    """What modules give out at the last tokens while the block runs a model, float32 `[B,H]` each."""
    found: list[torch.Tensor] = []

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output  # [B,T,H]
        if isinstance(states, torch.Tensor) and states.ndim == 3 and states.shape[-1] == size:
            places = last.to(states.device)
            found.append(states[torch.arange(len(places), device=states.device), places].float())

    handles = [part.register_forward_hook(hook) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def middle_directions(unembedding: torch.Tensor) -> torch.Tensor:
    """The right singular vectors of the middle half of the singular values.

    Args:
        unembedding: `W_U [V,H]`.

    Returns:
        float32 `[H//2,H]`.
    """
    H = unembedding.shape[1]
    squares = torch.zeros(H, H, dtype=torch.float64)
    for rows in torch.split(unembedding, 2**14):
        part = rows.detach().double().cpu()
        squares += part.T @ part
    vectors = torch.linalg.eigh(squares).eigenvectors.flip(1).T  # [H,H], the largest first
    kept = H // 2
    start = (H - kept) // 2
    return vectors[start : start + kept].float()


def unembedding_of(encoder: Encoder, source: BaseModelSource) -> torch.Tensor:
    """`W_U [V,H]`, which the model without its head does not have unless it is tied to the embeddings.

    Args:
        encoder: Of the model.
        source: Where it came from.

    Raises:
        ValueError: Its checkpoint has no unembedding, or cannot be read.
    """
    model = encoder.model
    if model.config.get_text_config().tie_word_embeddings:
        weight: torch.Tensor = model.get_input_embeddings().weight
        return weight
    checkpoint = Checkpoint.open(source.name_or_path, **source.hub.keywords)
    name = next((name for name in sorted(checkpoint.names(), key=len) if name.endswith(_HEAD)), None)
    if name is None:
        raise ValueError(
            f"The checkpoint in {source.name_or_path} has no {_HEAD}, so embed-filter has no unembedding to filter by; "
            "leave that baseline out."
        )
    return read_weight(checkpoint, name)


def _of_encoder(kind: Callable[..., ModelBaseline]) -> Callable[[SSMoE, ForwardSettings], ModelBaseline]:
    return lambda module, forward: kind(module.encoder, forward)


MODEL_BASELINES: dict[str, Callable[[SSMoE, ForwardSettings], ModelBaseline]] = {
    "mean": _of_encoder(MeanPooling),
    "echo": _of_encoder(Echo),
    "metaeol": _of_encoder(MetaEOL),
    "token-prepending": _of_encoder(TokenPrepending),
    "embed-filter": lambda module, forward: EmbedFilter(
        module.encoder, forward, lambda: unembedding_of(module.encoder, module.source)
    ),
    "aligned-wva": _of_encoder(AlignedWVA),
    "idf-router": _of_encoder(IdfRouter),
    "codes": _of_encoder(Codes),
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
            sample = sorted(sample_texts() if self._sample is None else self._sample, key=len)
            parts = [self._vectors(sample[start : start + batch_size]) for start in range(0, len(sample), batch_size)]
            self._factors = BlockCalibration.fit(torch.cat(parts), self.calibration)
        different = sorted(dict.fromkeys(texts), key=len, reverse=True)
        starts = range(0, len(different), batch_size)
        made = [
            self._vectors(different[start : start + batch_size])
            for start in tqdm(starts, desc="Reading", unit="batch", leave=False, disable=not progress)
        ]
        rows = dict(zip(different, torch.cat(made), strict=True))
        found = torch.stack([rows[text] for text in texts])
        return found if self._factors is None else self._factors.apply(found)

    def _vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Uncalibrated vectors on the CPU.

        Raises:
            ValueError: One is not finite.
        """
        found = self.baseline.features(texts).float().cpu()
        if not bool(torch.isfinite(found).all()):
            raise ValueError(
                f"A vector is not finite in {self.baseline.encoder.model.dtype}; load the model in bfloat16 or float32."
            )
        return found


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
