"""Adapters (LoRA and its kin, by peft) on a base model: saved by themselves, a few MB beside a reference to the model.

LoRA: https://arxiv.org/abs/2106.09685. The base model below an adapter stays what it was, so it is not saved again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.common.loading import HubOptions

ADAPTER = "adapter"
"""Folder of the adapter in an embedding model's repository."""
CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What names in an adapter's file begin with, whether or not the model was wrapped."""


@dataclass(frozen=True)
class Adapter:
    """How an adapter sits on a model.

    Attributes:
        name: What peft calls it there.
        wrapped: The model is peft's wrapper around the base model, as `get_peft_model` gives it, not the base model itself.
    """

    name: str = "default"
    wrapped: bool = False


def adapter_on(model: nn.Module) -> Adapter | None:
    """The adapter that a model runs with; None for a plain model.

    Raises:
        ValueError: It carries one that it does not run with, several, or one that is merged into the weights.
    """
    names = [*getattr(model, "peft_config", {})]
    if not names:
        return None
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        return None  # it was merged or unloaded, and its configuration stayed
    active = {name for layer in layers for name in layer.active_adapters if not layer.disable_adapters}
    if len(names) > 1 or active != set(names) or any(layer.merged for layer in layers):
        merged = "some of them" if any(layer.merged for layer in layers) else "none"
        raise ValueError(
            f"The base model carries the adapters {names}, of which {sorted(active)} are active and {merged} merged into "
            "its weights; what is saved is one adapter, active and not merged. Delete or unmerge the others, or put the "
            "result into the weights for good: module.model = module.model.merge_and_unload()."
        )
    return Adapter(names[0], isinstance(model, PeftModel))


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A base model's tensors under the names that they have without adapters, whose own tensors are left out."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "adapter_layer_names")]
    own = {"modules_to_save", *(name for layer in layers for name in layer.adapter_layer_names)}
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if not layers or not own & set(parts):
            plain = ".".join(part for part in parts if part not in ("base_layer", "original_module"))
            state[plain.removeprefix(PREFIX)] = tensor
    return state


def save_base(model: Any, folder: Path) -> None:
    """Write the base model itself, without an adapter on it, as transformers does."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    carried = getattr(base, "_hf_peft_config_loaded", False)
    try:
        base._hf_peft_config_loaded = False  # with it, transformers writes the adapter in the model's place
        base.save_pretrained(folder, state_dict=plain_state(model) if getattr(base, "peft_config", None) else None)
    finally:
        base._hf_peft_config_loaded = carried


def save_adapter(model: Any, adapter: Adapter, folder: Path) -> None:
    """Write an adapter as peft does, so that peft loads it too."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, adapter_name=adapter.name)
    folder.mkdir(parents=True, exist_ok=True)
    named = {PREFIX + name.removeprefix(PREFIX): weight.contiguous().cpu() for name, weight in weights.items()}
    save_file(dict(sorted(named.items())), folder / _WEIGHTS, metadata={"format": "pt"})
    model.peft_config[adapter.name].save_pretrained(str(folder))


def load_adapter(model: Any, place: str, adapter: Adapter, hub: HubOptions) -> Any:
    """Put a saved adapter onto a model.

    Args:
        model: The plain base model, which is changed.
        place: The adapter's folder or hub id.
        adapter: How it is to sit there.
        hub: How its files are fetched.

    Returns:
        The model that runs with it.

    Raises:
        ImportError: peft is not installed.
        ValueError: The adapter does not fit the model.
    """
    require_package("peft", "ssmoe-embed[train]")
    from peft import (
        PeftConfig,
        get_peft_model,
        get_peft_model_state_dict,
        inject_adapter_in_model,
        set_peft_model_state_dict,
    )
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(place, **hub.files)
    config.inference_mode = True
    stored = {n.removeprefix(PREFIX): w for n, w in load_peft_weights(place, device="cpu", **hub.files).items()}
    level = _extra_level(stored, [name for name, _ in model.named_modules()])
    stored = {name.removeprefix(level): weight for name, weight in stored.items()}
    for field in ("target_modules", "target_parameters", "modules_to_save"):
        named = getattr(config, field, None)
        if isinstance(named, list | set | tuple):
            setattr(config, field, type(named)(name.removeprefix(level) for name in named))
    if adapter.wrapped:
        model = get_peft_model(model, config, adapter_name=adapter.name)
    else:
        model = inject_adapter_in_model(config, model, adapter_name=adapter.name)
        model._hf_peft_config_loaded = True  # as transformers' own add_adapter leaves it
    prefix = PREFIX if adapter.wrapped else ""
    weights = {prefix + name: weight for name, weight in stored.items()}
    set_peft_model_state_dict(model, weights, adapter_name=adapter.name)
    lacking = sorted(get_peft_model_state_dict(model, adapter_name=adapter.name).keys() - weights.keys())
    if lacking:  # weights of layers that are not loaded may be left over
        raise ValueError(
            f"The adapter {place} has no weights for {lacking[0]} of the base model; it was trained on another one, or its "
            f"{CONFIG} is another adapter's."
        )
    return model


def _extra_level(weights: Iterable[str], modules: Iterable[str]) -> str:
    """What an adapter's names begin with, such as `model.`, if it was trained on more than the decoder of these modules."""
    known = {name for name in modules if name}
    for name in weights:
        parts = name.split(".")
        for skipped in range(len(parts)):
            path = ".".join(parts[skipped : skipped + 3])  # layers.0.self_attn, and not a name that occurs at any depth
            if path in known:
                return "".join(f"{part}." for part in parts[:skipped])
    return ""


def base_of_adapter(place: str, hub: HubOptions) -> tuple[str, str | None] | None:
    """The base model that an adapter was trained on, and its revision; None if there is no adapter.

    Raises:
        ValueError: The adapter does not say.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    path = find_adapter_config_file(place, **hub.files)
    if path is None:
        return None
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{path} does not say which model the adapter was trained on; write its folder or hub id there, under "
            "base_model_name_or_path."
        )
    return str(base), config.get("revision")
