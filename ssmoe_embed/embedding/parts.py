"""What an embedding module consists of, and making it of a base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.embedding.base_model import BaseModelSource, loading_bar, spectral_routers
from ssmoe_embed.embedding.calibration import Calibrations
from ssmoe_embed.embedding.card import model_card
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.keywords import split
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class Parts:
    """What a module consists of."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: EmbeddingSettings
    routers: SpectralRouters | None
    calibrations: Calibrations
    source: BaseModelSource

    @property
    def base_revision(self) -> str | None:
        """The base model's commit on the hub, where known."""
        return self.source.hub.revision or getattr(self.model.config, "_commit_hash", None)

    def config(self) -> dict[str, Any]:
        """Everything of the saved configuration that is not a weight."""
        return {
            "base_model_name_or_path": self.source.name_or_path,
            "base_revision": self.base_revision,
            "base_license": self.source.license,
            "dtype": self.source.dtype,
            "quantization": self.source.quantization,
        } | self.settings.as_dict()

    def card(self, dimensions: int) -> str:
        """The model card, for vectors of that many dimensions."""
        spectral = self.routers.settings.as_dict() if self.routers else None
        return model_card(
            self.source, self.settings, dimensions=dimensions, revision=self.base_revision, spectral=spectral
        )


def parts_from_base(
    base: str | Path,
    options: dict[str, Any],
    *,
    routers: SpectralRouters | str | Path | None,
    progress: bool,
    processor_kwargs: dict[str, Any] | None = None,
    **loading: Any,
) -> Parts:
    """Load a base model and make the spectral routers that the settings need; no calibration is fitted.

    Args:
        base: Folder or hub id of the language model, or of an adapter that was trained on one.
        options: Fields of `HubOptions`, `SpectralSettings` and `EmbeddingSettings`.
        routers: Spectral routers made before, or their file.
        progress: Show progress bars.
        processor_kwargs: For the tokenizer; `model_max_length` sets `max_seq_length`.
        **loading: Further fields of `BaseModelSource`.

    Raises:
        UnsupportedModelError: The model is dense, or its family has no adapter.
        ValueError: An option is not known or has a value that is not allowed.
    """
    hub, spectral, settings = split(options)
    longest = (processor_kwargs or {}).get("model_max_length")
    limit = {} if longest is None else {"max_seq_length": longest}
    chosen = EmbeddingSettings.of(**(limit | settings))
    source = BaseModelSource.of(base, hub, processor_kwargs=processor_kwargs, **loading)
    with loading_bar(progress):
        model, tokenizer, source = source.load(chosen.hidden_layer)
    Encoder(model, tokenizer).check_layers(chosen)  # before the long work
    made = SpectralRouters.load(routers) if isinstance(routers, str | Path) else routers
    if made is None and chosen.needs_spectral_routers:
        made = spectral_routers(model, source, **spectral, progress=progress)
    return Parts(model, tokenizer, chosen, made, Calibrations(), source)
