"""`SSMoE`, the sentence-transformers module."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self, Unpack

from ssmoe_embed.embedding.base_model import BaseModelSource, loading_bar, spectral_routers
from ssmoe_embed.embedding.calibration import BlockCalibration, Calibrations, fit_calibrations
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.fingerprint import identify
from ssmoe_embed.embedding.keywords import ModelKeywords, split_keywords
from ssmoe_embed.embedding.persistence import CONFIG, GENERATED, Parts, limit_of, load_parts, save_parts
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.settings import Block, EmbeddingSettings
from ssmoe_embed.embedding.tokenization import check_texts
from ssmoe_embed.quantization.settings import Quantization, QuantizationSettings
from ssmoe_embed.spectral.routers import SpectralRouters


class SSMoE(InputModule):
    """A Mixture-of-Experts language model as a sentence-embedding module, without training.

    A text is put into a template, the model runs once, and the state at the template's last token is read: the hidden
    state, what the routers of all layers say there, or both. Use it as the one module of a `SentenceTransformer`:
    `SentenceTransformer(modules=[SSMoE.from_base("allenai/OLMoE-1B-7B-0924")])`.

    Sources: SSMoE, https://arxiv.org/abs/2605.30992; MoEE, https://arxiv.org/abs/2410.10814.

    Attributes:
        model: The base model without its head, frozen.
        settings: How a text becomes a vector; assign others to change them, or take another view with `using`.
        calibrations: Fitted factors.
        source: Where the base model came from.
    """

    config_file_name = CONFIG
    save_in_root = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EmbeddingSettings | None = None,
        *,
        routers: SpectralRouters | None = None,
        calibrations: Mapping[str, BlockCalibration] | Calibrations | None = None,
        source: BaseModelSource | None = None,
        sharing: Encoder | None = None,
    ) -> None:
        """Put the parts together; most users call `from_base` or load a saved model.

        Args:
            model: A transformers MoE model without head.
            tokenizer: Its fast tokenizer.
            settings: How a text becomes a vector.
            routers: Spectral routers of this very model; needed by `ev` and `ssmoe`.
            calibrations: Fitted factors.
            source: Where the model came from, and what it was then; by default that is not known, so it is saved whole.
            sharing: An encoder of the same model and tokenizer, whose templates and named routings are used again.

        Raises:
            UnsupportedModelError: The model's family has no adapter.
            ValueError: Routers, calibration or settings do not fit the model.
        """
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.source = source or BaseModelSource(str(model.config.name_or_path))
        self.calibrations = calibrations if isinstance(calibrations, Calibrations) else Calibrations(calibrations)
        self._encoder = Encoder(model, tokenizer, routers) if sharing is None else replace(sharing, routers=routers)
        self._owner: tuple[Any, ...] = ()  # a tuple, or torch would take it for a submodule
        self._settings = settings or EmbeddingSettings()
        self._encoder.check(self._settings)

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        *,
        routers: SpectralRouters | str | Path | None = None,
        calibration_texts: Sequence[str] | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        license: str | None = None,  # noqa: A002 (the model card's own word)
        include_base: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        progress: bool = True,
        **options: Unpack[ModelKeywords],
    ) -> Self:
        """Turn a MoE language model into an embedding module; `ssmoe build` does it once and saves the result.

        Args:
            base: Folder or hub id of the language model, or of an adapter (LoRA) that was trained on one.
            routers: Spectral routers made before, or their file.
            calibration_texts: The texts to fit the calibration on; by default the sample that comes with the package.
            dtype: The dtype to load it in, also when the saved model is loaded again; by default the checkpoint's own.
            quantize: Keep its weights in 4 bits, experts included, also when the saved model is loaded again: `nf4`,
                `nf4-experts` or `paper-nf4`, see `Quantization`.
            license: The base model's licence, for the model card.
            include_base: Save the base model with the module instead of pointing to it.
            model_kwargs: For the base model: `dtype`, `device_map`, `attn_implementation`, `quantization_config`, ….
            processor_kwargs: For the tokenizer; `model_max_length` sets `max_seq_length`.
            config_kwargs: For the base model's configuration.
            progress: Show progress bars.
            **options: Fields of `HubOptions` (`revision`, …), `SpectralSettings` (`top_c`, …) and `EmbeddingSettings`.

        Raises:
            UnsupportedModelError: The model is dense, or its family has no adapter.
            ValueError: An option is not known or has a value that is not allowed.
        """
        hub, spectral, own = split_keywords(dict(options))
        settings = EmbeddingSettings.of(**(limit_of(processor_kwargs) | own))
        source = BaseModelSource.of(
            base,
            hub,
            dtype=dtype,
            quantization=None if quantize is None else str(Quantization.parse(quantize, "quantize")),
            license=license,
            included=include_base,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
        )
        with loading_bar(progress):
            model, tokenizer, source = source.load(settings.hidden_layer)
        Encoder(model, tokenizer).check_layers(settings)  # before the long work
        made = SpectralRouters.load(routers) if isinstance(routers, str | Path) else routers
        if made is None and settings.needs_spectral_routers:
            made = spectral_routers(model, source, **spectral, progress=progress)
        module = cls(model, tokenizer, settings, routers=made, source=source)
        return module.fit_calibration(calibration_texts, progress=progress)

    @property
    def encoder(self) -> Encoder:
        """What reads texts under any forward pass, with the model and spectral routers as they are now."""
        if self._encoder.model is not self.model or self._encoder.tokenizer is not self.tokenizer:
            self._encoder = Encoder(self.model, self.tokenizer, self.routers)
        return self._encoder

    @property
    def routers(self) -> SpectralRouters | None:
        """The spectral routers, if there are any; `using(routers=…)` gives a view with others."""
        return self._encoder.routers

    @property
    def settings(self) -> EmbeddingSettings:
        """How a text becomes a vector. Assigned ones must fit the model, and `fit_calibration` fits what they lack."""
        return self._settings

    @settings.setter
    def settings(self, settings: EmbeddingSettings) -> None:
        self.encoder.check(self._same_layer(settings))
        self._settings = settings
        self._refresh_card()

    def using(
        self, settings: EmbeddingSettings | None = None, *, routers: SpectralRouters | None = None, **changes: Any
    ) -> Self:
        """A view of the same loaded model with other settings or spectral routers; this one stays as it is.

        Args:
            settings: How the view makes vectors; by default as this one does.
            routers: Its spectral routers; by default this one's, whose calibration it then shares.
            **changes: Fields of `EmbeddingSettings` that differ.

        Raises:
            ValueError: A setting is not known, has a value that is not allowed, or does not fit the model.
        """
        chosen = self._same_layer((settings or self.settings).changed(**changes))
        shared = self.calibrations
        if routers is not None and routers is not self.routers:
            shared = shared.with_other_routers()
        parts = replace(self.parts, settings=chosen, routers=routers or self.routers, calibrations=shared)
        other = type(self)(**vars(parts), sharing=self.encoder)
        other.training = self.training  # the base model's mode is its own
        return other

    def _same_layer(self, settings: EmbeddingSettings) -> EmbeddingSettings:
        """Settings that read the layer up to which the model is loaded."""
        if settings.hidden_layer != self.settings.hidden_layer:
            raise ValueError(
                f"hidden_layer={settings.hidden_layer} cannot be set on a loaded model, whose later layers may be gone; "
                f"load it with ssmoe_embed.load(..., hidden_layer={settings.hidden_layer})."
            )
        return settings

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Token ids of `B` texts in their template, before which stands a sentence-transformers prompt.

        Returns:
            `input_ids` and `attention_mask`, `[B,T]`; `P` rows a text for an ensemble of `P` prompts.

        Raises:
            TextError: An input is not a string.
        """
        check_texts(inputs, "the batch (sentence-transformers sorts texts by length before it batches them)")
        return self.encoder.tokenize(inputs, self.settings.forward, prompt or "")

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Vectors of a batch of `input_ids` and `attention_mask`, `[B,T]`.

        Returns:
            The features with `sentence_embedding` (float32 `[B,D]`) and `token_embeddings` (`[B,T,H]`), those of the first
            template for an ensemble of prompts.

        Raises:
            ValueError: The calibration is missing, or a vector is not finite.
        """
        reading = self.encoder.read(features, self.settings.forward)
        blocks = {block: self.encoder.features(reading, block) for block in self.settings.blocks}
        embedding = self.vectors(blocks)  # [B,D]
        count = len(templates(self.settings.prompt))  # P
        first = {name: features[name][::count] for name in ("input_ids", "attention_mask")}  # [B·P,T] → [B,T]
        tokens = reading.tokens[::count]  # [B·P,T,H] → [B,T,H]
        return features | first | {"token_embeddings": tokens, "sentence_embedding": embedding}

    def vectors(self, blocks: Mapping[Block, torch.Tensor]) -> torch.Tensor:
        """The vectors that the settings make of the features of their blocks, see `Calibrations.vectors`.

        Raises:
            ValueError: The calibration is missing, or a vector is not finite.
        """
        embedding = self.calibrations.vectors(blocks, self.settings.features)  # [B,D]
        if not bool(torch.isfinite(embedding).all()):
            rows = [int(row) for row in (~torch.isfinite(embedding)).any(dim=1).nonzero().flatten()]
            raise ValueError(
                f"The vectors of texts {rows} of the batch are not finite in {self.model.dtype}; "
                "load the model with model_kwargs={'dtype': 'bfloat16'} or 'float32'."
            )
        return embedding

    def fit_calibration(
        self,
        texts: Iterable[str] | None = None,
        *,
        variants: Sequence[EmbeddingSettings] | None = None,
        batch_size: int = 32,
        progress: bool = True,
        **options: Any,
    ) -> Self:
        """Fit the calibration factors that the model does not have, on texts that by default come with the package.

        Args:
            texts: Sample texts.
            variants: Settings to fit for; by default the current ones. Those that need the same forward pass share it.
            batch_size: The batch size.
            progress: Show a progress bar.
            **options: `refit` and `notes`, see `fit_calibrations`.

        Raises:
            ValueError: There are fewer than two texts.
        """
        options |= {"batch_size": batch_size, "progress": progress}
        fit_calibrations(self.encoder, self.calibrations, texts, variants or [self.settings], **options)
        return self

    def get_embedding_dimension(self) -> int:
        """Length of a vector."""
        return sum(map(self.encoder.block_size, self.settings.blocks))

    @property
    def max_seq_length(self) -> int:
        """Tokens read of a text, template included: the setting, or fewer where the base model takes fewer."""
        return self.encoder.limit(self.settings.forward)

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.settings = self.settings.changed(max_seq_length=value)

    @property
    def default_batch_size(self) -> int | None:
        """Texts per forward pass, where the 4-bit preset that the model was built with has a say; else None."""
        name = self.source.quantization
        return None if name is None else QuantizationSettings.of(name).batch_size

    def get_config_dict(self) -> dict[str, Any]:
        """Everything of the saved configuration that is not a weight."""
        return self.parts.config()

    def on_model_ready(self, model: Any) -> None:
        """Give the model that owns this module a model card of its own, unless it has another one."""
        identify(model)
        if not self.source.is_local:
            model.model_card_data.base_model = self.source.name_or_path
        self._owner = (model,)
        self._refresh_card()

    def _refresh_card(self) -> None:
        """Bring the owner's model card up to date, unless it was written by hand."""
        for owner in self._owner:
            if not owner._model_card_text or GENERATED in owner._model_card_text:
                owner._model_card_text = self.card()  # what sentence-transformers writes as README.md

    def card(self) -> str:
        """Its model card."""
        return self.parts.card(self.get_embedding_dimension())

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the module: configuration, spectral routers and calibration; and what of the base model is not elsewhere.

        Whether the base model is still what it was loaded as is looked at, not inferred. If its weights or tokenizer were
        changed (trained, merged, edited in place, resized), or if it was not loaded by this package, it is saved whole; an
        adapter on an unchanged base model is saved by itself.

        Raises:
            ValueError: `safe_serialization` is false, or a 4-bit base would have to be saved, or one with two adapters.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would pickle the weights; SSMoE writes safetensors only.")
        save_parts(self.parts, Path(output_path))

    @property
    def parts(self) -> Parts:
        """What it consists of."""
        return Parts(self.model, self.tokenizer, self.settings, self.routers, self.calibrations, self.source)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """Load a saved module and the base model it points to.

        Args:
            model_name_or_path: Folder or hub id of the small repository.
            subfolder: Where in it.
            **kwargs: What `SentenceTransformer(...)` was given: `token`, `revision` (the small repository's),
                `model_kwargs`, `processor_kwargs`, …. Fields of `EmbeddingSettings` in `config_kwargs` override the saved
                settings; the rest of `config_kwargs` goes to the base model.

        Raises:
            FileNotFoundError: A file of the model is missing.
            ValueError: A file is broken or does not fit the base model.
        """
        return cls(**vars(load_parts(cls, model_name_or_path, subfolder, **kwargs)))

    def __repr__(self) -> str:
        return f"SSMoE({json.dumps(self.get_config_dict())})"


SSMoE.__module__ = "ssmoe_embed"  # saved models name the class by its public path
