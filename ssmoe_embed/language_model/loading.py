"""Loading a causal language model whose tokens are routed another way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ssmoe_embed.common.devices import check_device_map, warn_of_half_precision
from ssmoe_embed.common.hub import HubOptions
from ssmoe_embed.data import BUNDLED, tiny_folder
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.embedding.persistence import OWN_BASE
from ssmoe_embed.families import family_of, load_config
from ssmoe_embed.hub.names import RECIPES, local, unknown_model
from ssmoe_embed.language_model.routings import RoutingSettings, parse_routing, policy_of
from ssmoe_embed.quantization.loading import forget_unpacking, unpacked_mxfp4
from ssmoe_embed.routing import RoutingPolicy, reroute

_DEFAULT = HubOptions()


def load(
    base: str | Path,
    routing: RoutingPolicy | str | None = None,
    *,
    settings: RoutingSettings | None = None,
    dtype: str | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a causal language model that runs under another routing.

    It is transformers' own model: `generate`, streaming, batches and the key-value cache work as ever.

    Args:
        base: Folder or hub id of the language model, or a recipe's name, whose base model is meant.
        routing: A policy such as `SpectralRouting(routers, alpha=0.5)`; a name, see `policy_of`; None for the model's own.
        settings: What a routing's name leaves open.
        dtype: Dtype of the weights; by default the checkpoint's own.
        progress: Show progress bars while weights are loaded and spectral routers are made.
        **kwargs: Fields of `HubOptions` (`revision`, `token`, …), and keywords of `AutoModelForCausalLM.from_pretrained`:
            `device_map`, `attn_implementation`, …

    Raises:
        FileNotFoundError: There is no model of that name.
        UnsupportedModelError: The model is dense, or its family has no adapter.
        ValueError: It has no language-model head, or its checkpoint is incomplete, or the routing does not fit, or
            `device_map` names a device that is not there.
    """
    if isinstance(routing, str):
        routing = parse_routing(routing)  # before anything is loaded
    check_device_map(kwargs.get("device_map"))
    hub = HubOptions.taken_from(kwargs)
    with loading_bar(progress):
        model = _loaded(base_of(base), dtype, hub, kwargs)
    if dtype is None:
        warn_of_half_precision(model)
    policy = policy_of(routing, model, settings, progress=progress) if isinstance(routing, str) else routing
    if policy is not None:
        reroute(model, policy)
    return model


def skeleton(base: str | Path, hub: HubOptions = _DEFAULT) -> PreTrainedModel:
    """The language model without weights, for what its configuration alone decides; tensors are on the device `meta`.

    Raises:
        FileNotFoundError: There is no model of that name.
        UnsupportedModelError: The model is dense, or its family has no adapter.
        ValueError: It is no language model.
    """
    config = _config(base_of(base), hub)
    with torch.device("meta"), _told_of_heads(base_of(base), config):
        return _class_with_head(config).from_config(config, trust_remote_code=hub.trust_remote_code)


def load_tokenizer(base: str | Path, hub: HubOptions = _DEFAULT) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, with a padding token and padding on the left, as generation needs."""
    tokenizer = AutoTokenizer.from_pretrained(base_of(base), padding_side="left", **hub.loading)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def base_of(name: str | Path) -> str:
    """The folder or hub id of the language model that a name is for.

    Raises:
        FileNotFoundError: It is a folder that does not exist.
    """
    name = local(name)
    if Path(name).is_dir():
        return name
    if name == BUNDLED:
        return str(tiny_folder() / OWN_BASE)
    return RECIPES[name].base if name in RECIPES else name


def _loaded(base: str, dtype: str | None, hub: HubOptions, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The model with its head, or an error where the library would fill a gap with random weights and a warning."""
    config = _config(base, hub)
    keywords: dict[str, Any] = {"config": config} | ({"dtype": dtype} if dtype else {}) | hub.loading | kwargs
    keywords |= unpacked_mxfp4(config, kwargs.get("quantization_config"))
    is_packed = getattr(config, "quantization_config", None) is not None  # which unpacking takes away
    advice = f"The checkpoint {base} is incomplete or corrupted, or does not fit its config.json; download it again"
    try:
        with _told_of_heads(base, config):
            model, report = _class_with_head(config).from_pretrained(base, output_loading_info=True, **keywords)
    except torch.OutOfMemoryError:
        raise  # no fault of the checkpoint's
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{advice}. ({str(error).strip().splitlines()[0]})") from error
    missing = sorted(report["missing_keys"]) + [name for name, *_ in report["mismatched_keys"]]
    heads = [name for name in missing if "head" in name]
    if heads:
        raise ValueError(
            f"{base} has no language-model head ({heads[0]} is missing), so it can neither generate nor be evaluated as "
            "a language model. Choose the checkpoint of the causal language model."
        )
    if missing:
        raise ValueError(
            f"{len(missing)} of the model's weights are missing or cut short, such as {missing[0]}. {advice}."
        )
    if is_packed:
        forget_unpacking(model)
    return model.requires_grad_(False).eval()


def _class_with_head(config: Any) -> Any:
    """What loads a language model with its head: of some that also see, transformers has no class for text alone."""
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _config(base: str, hub: HubOptions) -> Any:
    """The configuration of a supported model."""
    try:
        config = load_config(base, **hub.loading)
    except OSError as error:
        raise FileNotFoundError(unknown_model(base, str(error).strip().splitlines()[0])) from error
    family_of(config)
    return config


@contextmanager
def _told_of_heads(base: str, config: Any) -> Iterator[None]:
    """Say plainly that a model is of a kind that transformers has no language-model head for."""
    try:
        yield
    except ValueError as error:
        if "AutoModelForCausalLM" not in str(error):
            raise
        raise ValueError(
            f"{base} ({config.model_type}) is no language model: it has no head to predict tokens."
        ) from None
