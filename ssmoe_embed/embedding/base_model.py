"""Loading the MoE model below an embedding: without its language-model head, and no further than it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ssmoe_embed.common.devices import check_device_map
from ssmoe_embed.common.hub import HubOptions
from ssmoe_embed.families import MoEFamily, family_of, load_config
from ssmoe_embed.quantization.loading import forget_unpacking, load_quantized, unpacked_mxfp4
from ssmoe_embed.quantization.settings import QuantizationSettings, requested
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class BaseModelSource:
    """Where a base model comes from and how it is loaded.

    Attributes:
        name_or_path: Folder or hub id that it is loaded from.
        revision: Hub revision; for a folder None.
        dtype: The dtype it is loaded in unless `model_kwargs` names one; None for the checkpoint's own.
        quantization: A name of `Quantization` to load it in 4 bits, unless `model_kwargs` says otherwise; None for not.
        license: Its licence, as the model card tells it.
        included: It is part of the embedding model's own repository.
        token: Hub token.
        cache_folder: Hub cache.
        local_files_only: Never ask the hub.
        trust_remote_code: Allow code that comes with the base model.
        model_kwargs: For `AutoModel.from_pretrained`: `dtype`, `device_map`, `attn_implementation`, …; and `load_in_4bit`.
        processor_kwargs: For `AutoTokenizer.from_pretrained`.
        config_kwargs: For the base model's configuration.
    """

    name_or_path: str
    revision: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    license: str | None = None
    included: bool = False
    token: bool | str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False
    model_kwargs: dict[str, Any] | None = None
    processor_kwargs: dict[str, Any] | None = None
    config_kwargs: dict[str, Any] | None = None

    @property
    def hub(self) -> HubOptions:
        """How its files are fetched."""
        return HubOptions(self.revision, self.token, self.cache_folder, self.local_files_only, self.trust_remote_code)

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        """Keywords that the hub's functions share."""
        return {
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_folder,
            "local_files_only": self.local_files_only,
        }

    def load_config(self) -> PretrainedConfig:
        """The base model's configuration."""
        kwargs = self.hub_kwargs | {"trust_remote_code": self.trust_remote_code} | (self.config_kwargs or {})
        return load_config(self.name_or_path, **kwargs)

    def load(self, hidden_layer: int = -1) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model, frozen and in evaluation mode, and its tokenizer.

        Args:
            hidden_layer: Which of the model's `hidden_states` is wanted; layers after it are not loaded.

        Raises:
            UnsupportedModelError: It is dense, or its family has no adapter.
            ValueError: `hidden_layer` is out of range, or `device_map` names a device that is not there.
        """
        check_device_map((self.model_kwargs or {}).get("device_map"))
        config = self.load_config()
        family = family_of(config)
        total = family.text_config(config).num_hidden_layers
        kept = _kept_layers(total, hidden_layer)
        if kept < total:
            family.shorten(config, kept)
        shared = self.hub_kwargs | {"trust_remote_code": self.trust_remote_code}
        four_bit, given = requested(self.model_kwargs, self.quantization)
        dtype = self.dtype or (four_bit.dtype if four_bit else None)
        defaults = {"config": config} | ({"dtype": dtype} if dtype else {})
        model = _text_part(_loaded(self.name_or_path, four_bit, **(defaults | shared | given)), family)
        if kept < total:
            family.drop_final_norm(model)  # it was trained for the last layer's output
        tokenizer = AutoTokenizer.from_pretrained(self.name_or_path, **(shared | (self.processor_kwargs or {})))
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.requires_grad_(False).eval(), tokenizer

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.name_or_path).is_dir()


def spectral_routers(model: PreTrainedModel, source: BaseModelSource, **settings: Any) -> SpectralRouters:
    """The spectral routers of a loaded model, from its checkpoint where the weights in memory are not the trained ones.

    Args:
        model: The model.
        source: Where it came from.
        **settings: See `SpectralRouters.from_model`.
    """
    if getattr(model, "is_quantized", False) or any(weight.is_meta for weight in model.parameters()):
        return SpectralRouters.from_checkpoint(source.name_or_path, **source.hub.keywords, **settings)
    return SpectralRouters.from_model(model, **settings)


@contextmanager
def loading_bar(wanted: bool) -> Iterator[None]:
    """Leave transformers' own progress bar for loading weights as it is, or hide it."""
    hidden = not wanted and logging.is_progress_bar_enabled()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()


def _loaded(name_or_path: str, four_bit: QuantizationSettings | None, **kwargs: Any) -> PreTrainedModel:
    """The model without its head, or an error where the library would fill a gap with random weights and a warning."""
    advice = (
        f"The checkpoint {name_or_path} is incomplete or corrupted, or does not fit its config.json; download it again"
    )
    is_packed = getattr(kwargs["config"], "quantization_config", None) is not None  # which unpacking takes away
    if four_bit is None:
        load: Any = AutoModel.from_pretrained
        kwargs |= unpacked_mxfp4(kwargs["config"], kwargs.get("quantization_config"))
    else:
        load = partial(load_quantized, settings=four_bit)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the head and the layers that are left out on purpose
    try:
        model, report = load(name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except torch.OutOfMemoryError:
        raise  # no fault of the checkpoint's
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{advice}. ({str(error).strip().splitlines()[0]})") from error
    finally:
        logging.set_verbosity(verbosity)
    wrong = sorted(report["missing_keys"]) + [name for name, *_ in report["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{len(wrong)} of the model's weights are missing or cut short, such as {wrong[0]}. {advice}.")
    if is_packed:
        forget_unpacking(model)
    return model


def _text_part(model: PreTrainedModel, family: MoEFamily) -> PreTrainedModel:
    """The decoder of a model that does more than read text, with what is known of the whole; any other as it is."""
    decoder = family.decoder(model)
    if decoder is not model:
        decoder.config.name_or_path = model.config.name_or_path
        for owner, other, name in (
            (decoder.config, model.config, "_commit_hash"),
            (decoder, model, "is_quantized"),
            (decoder, model, "hf_device_map"),
        ):
            if hasattr(other, name):
                setattr(owner, name, getattr(other, name))
    return decoder


def _kept_layers(total: int, hidden_layer: int) -> int:
    """How many decoder layers run to get `hidden_states[hidden_layer]`, of which there are one more than layers."""
    kept = hidden_layer if hidden_layer >= 0 else total + 1 + hidden_layer
    if not 1 <= kept <= total:
        raise ValueError(
            f"hidden_layer={hidden_layer} is out of range for {total} layers; choose 1 to {total}, or -1 (the last) to "
            f"{-total}."
        )
    return kept
