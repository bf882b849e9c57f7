"""Loading the MoE model below an embedding: without its language-model head, and no further than it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ssmoe_embed.common.loading import HubOptions, check_device_map, warn_of_half_precision
from ssmoe_embed.embedding.adapters import Adapter, base_of_adapter, load_adapter
from ssmoe_embed.embedding.fingerprint import Fingerprint
from ssmoe_embed.families import MoEFamily, family_of, load_config
from ssmoe_embed.quantization.loading import forget_unpacking, load_quantized, unpacked_mxfp4
from ssmoe_embed.quantization.settings import QuantizationSettings, requested
from ssmoe_embed.spectral.routers import SpectralRouters

CONFIG = "config.json"


@dataclass(frozen=True)
class BaseModelSource:
    """Where a base model comes from and how it is loaded.

    Attributes:
        name_or_path: Folder or hub id that it is loaded from.
        hub: How its files are fetched.
        dtype: The dtype it is loaded in unless `model_kwargs` names one; None for the checkpoint's own.
        quantization: A name of `Quantization` to load it in 4 bits, unless `model_kwargs` says otherwise; None for not.
        license: Its licence, as the model card tells it.
        included: It is part of the embedding model's own repository.
        adapter: Folder or hub id of an adapter that is put onto it; None for none.
        adapted: How the adapter sits on it.
        model_kwargs: For `AutoModel.from_pretrained`: `dtype`, `device_map`, `attn_implementation`, …; and `load_in_4bit`.
        processor_kwargs: For `AutoTokenizer.from_pretrained`.
        config_kwargs: For the base model's configuration.
        loaded: What model and tokenizer were when they were loaded, the adapter left out; None if that is not known.
    """

    name_or_path: str
    hub: HubOptions = field(default_factory=HubOptions)
    dtype: str | None = None
    quantization: str | None = None
    license: str | None = None
    included: bool = False
    adapter: str | None = None
    adapted: Adapter = field(default_factory=Adapter)
    model_kwargs: dict[str, Any] | None = None
    processor_kwargs: dict[str, Any] | None = None
    config_kwargs: dict[str, Any] | None = None
    loaded: Fingerprint | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = dict(self.model_kwargs or {})
        if "torch_dtype" in given:  # what dtype was called before transformers 5
            given.setdefault("dtype", given.pop("torch_dtype"))
            object.__setattr__(self, "model_kwargs", given)
        if self.dtype is not None:
            object.__setattr__(self, "dtype", dtype_name(self.dtype))

    @classmethod
    def of(cls, base: str | Path, hub: HubOptions, **fields: Any) -> BaseModelSource:
        """The source that a user names: a language model, or an adapter, whose base model is meant with it."""
        folder = Path(base).expanduser()
        name = str(folder.resolve()) if folder.is_dir() else str(base)
        found = None if (folder / CONFIG).is_file() else base_of_adapter(name, hub)
        if found is None:
            return cls(name, hub, **fields)
        return cls(found[0], replace(hub, revision=found[1]), adapter=name, adapted=Adapter(wrapped=True), **fields)

    @property
    def wanted_dtype(self) -> str | None:
        """The dtype that was asked for; None for the checkpoint's own."""
        named = (self.model_kwargs or {}).get("dtype", self.dtype)
        return None if named in (None, "auto") else dtype_name(named)

    def load_config(self) -> PretrainedConfig:
        """The base model's configuration.

        Raises:
            FileNotFoundError: It is a folder that is not there.
        """
        path = Path(self.name_or_path)
        if path.is_absolute() and not path.is_dir():
            raise FileNotFoundError(
                f"The base model's folder {path} is not there. Put it back, or write where it is now into "
                "ssmoe_config.json (or adapter_config.json), under base_model_name_or_path."
            )
        return load_config(self.name_or_path, **(self.hub.loading | (self.config_kwargs or {})))

    def load(self, hidden_layer: int = -1) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, BaseModelSource]:
        """The base model without its head, frozen and in evaluation mode; its tokenizer; and what it was then.

        Args:
            hidden_layer: Which of the model's `hidden_states` is wanted; layers after it are not loaded.

        Raises:
            FileNotFoundError: It is a folder that is not there.
            UnsupportedModelError: It is dense, or its family has no adapter.
            ValueError: `hidden_layer` is out of range, or `device_map` names a device that is not there.
        """
        check_device_map((self.model_kwargs or {}).get("device_map"))
        config = self.load_config()
        family = family_of(config)
        total = family.text_config(config).num_hidden_layers  # there is one hidden state more than layers
        kept = hidden_layer if hidden_layer >= 0 else total + 1 + hidden_layer
        if not 1 <= kept <= total:
            raise ValueError(
                f"hidden_layer={hidden_layer} is out of range for {total} layers; choose 1 to {total}, or -1 (the last) to "
                f"{-total}."
            )
        if kept < total:
            if family.streams:
                raise ValueError(
                    f"hidden_layer={hidden_layer} cannot be read: between the layers of {config.model_type} run several "
                    "residual streams, which are joined after the last. Use hidden_layer=-1."
                )
            family.shorten(config, kept)
        four_bit, given = requested(self.model_kwargs, self.quantization)
        dtype = self.dtype or (four_bit.dtype if four_bit else None)
        defaults = {"config": config} | ({"dtype": dtype} if dtype else {})
        model = _text_part(_loaded(self.name_or_path, four_bit, **(defaults | self.hub.loading | given)), family)
        if self.wanted_dtype is None and four_bit is None:
            warn_of_half_precision(model)
        if kept < total:
            family.drop_final_norm(model)  # it was trained for the last layer's output
        tokenizer = AutoTokenizer.from_pretrained(
            self.name_or_path, **(self.hub.loading | (self.processor_kwargs or {}))
        )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        source = replace(self, loaded=Fingerprint.of(model, tokenizer))
        if self.adapter is not None:
            own = HubOptions() if Path(self.adapter).is_dir() else replace(self.hub, revision=None)
            model = load_adapter(model, self.adapter, self.adapted, own)
        return model.requires_grad_(False).eval(), tokenizer, source

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.name_or_path).is_dir()


def dtype_name(dtype: str | torch.dtype) -> str:
    """A dtype's name, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def spectral_routers(model: PreTrainedModel, source: BaseModelSource, **settings: Any) -> SpectralRouters:
    """The spectral routers of a loaded model, from its checkpoint where the weights in memory are not the trained ones."""
    if source.adapter or getattr(model, "is_quantized", False) or any(weight.is_meta for weight in model.parameters()):
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
        if hasattr(model.config, "_commit_hash"):
            decoder.config._commit_hash = model.config._commit_hash
        for name in ("is_quantized", "hf_device_map"):
            if hasattr(model, name):
                setattr(decoder, name, getattr(model, name))
    return decoder
