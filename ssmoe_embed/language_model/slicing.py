"""Removing experts from a live model.

What a family keeps per expert is not listed anywhere: a twin of the model with fewer experts in its configuration is built
without memory, and every tensor whose shape differs there is cut along the dimension that differs. So biases, correction
biases and packed experts of every family are found, and what results is what the configuration describes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ssmoe_embed.families import MoEFamily, UnsupportedModelError, family_of
from ssmoe_embed.routing.sites import is_rerouted

_NOT_COUNTS = ("per_tok", "shared", "period", "offset", "size")


def slice_experts(model: PreTrainedModel, kept: Mapping[int, torch.Tensor]) -> None:
    """Keep some experts of every layer and free the others' memory, in place.

    Args:
        model: A transformers MoE model, not re-routed.
        kept: By decoder layer index, which experts stay, in the order they shall have; equally many in all layers.

    Raises:
        UnsupportedModelError: The model cannot lose experts; the message says why. Nothing was changed.
        ValueError: `kept` does not fit the model, or the model is re-routed.
    """
    family = family_of(model)
    _check(model, family, kept)
    count = len(next(iter(kept.values())))
    fields = count_fields(family, model)
    twin = _twin(model, family, fields, count)
    cuts = _cuts(family, model, twin, kept)
    for owner, name, dimension, experts in cuts:
        _cut(owner, name, dimension, experts)
    for old, new in zip(model.modules(), twin.modules(), strict=True):
        for name, value in vars(new).items():
            if type(value) is int and type(vars(old).get(name)) is int:
                setattr(old, name, value)  # counts that the layers keep beside the configuration
    for field in fields:
        setattr(family.text_config(model.config), field, count)


def count_fields(family: MoEFamily, model: PreTrainedModel) -> list[str]:
    """The fields of the configuration that hold the number of experts.

    Raises:
        UnsupportedModelError: There is none, or layers differ in their number.
    """
    counts = {family.expert_count(layer) for layer in family.layers(model)}
    if len(counts) != 1:
        raise UnsupportedModelError(
            f"The layers of this model have {sorted(counts)} experts, and dropping needs one number for all of them."
        )
    settings = family.text_config(model.config).to_dict()
    named = [name for name in settings if "expert" in name and not any(word in name for word in _NOT_COUNTS)]
    fields = [name for name in named if type(settings[name]) is int and settings[name] in counts]
    if not fields:
        raise UnsupportedModelError(
            f"The configuration of this {model.config.model_type!r} model does not say how many experts it has, so a model "
            "with fewer cannot be described."
        )
    return fields


def _check(model: PreTrainedModel, family: MoEFamily, kept: Mapping[int, torch.Tensor]) -> None:
    if is_rerouted(model):
        raise ValueError("This model is re-routed; call .remove() on the reroute(...) before experts are dropped.")
    if getattr(model, "is_quantized", False) or any(weight.is_meta for weight in model.parameters()):
        raise UnsupportedModelError(
            "Experts are dropped from weights that are in memory in 16 or 32 bits; load the model without quantisation and "
            "without offloading, drop, and quantise the result."
        )
    experts = {layer.index: family.expert_count(layer) for layer in family.layers(model)}
    if set(experts) != set(kept):
        raise ValueError(f"The sparse layers are {sorted(experts)}, and experts are named for {sorted(kept)}.")
    if len({len(chosen) for chosen in kept.values()}) != 1:
        raise ValueError("Every layer must keep the same number of experts; the configuration has one number for all.")
    for layer, chosen in kept.items():
        if len(set(chosen.tolist())) < len(chosen) or not all(0 <= one < experts[layer] for one in chosen.tolist()):
            raise ValueError(
                f"Layer {layer} has experts 0 to {experts[layer] - 1}; {chosen.tolist()} are not distinct ones."
            )


def _twin(model: PreTrainedModel, family: MoEFamily, fields: list[str], count: int) -> Any:
    """A model without memory whose configuration says `count` experts."""
    config = copy.deepcopy(model.config)
    for field in fields:
        setattr(family.text_config(config), field, count)
    try:
        with torch.device("meta"):
            return type(model)(config)
    except (ValueError, RuntimeError, TypeError) as error:
        raise UnsupportedModelError(f"{type(model).__name__} cannot have {count} experts: {error}") from error


def _cuts(
    family: MoEFamily, model: nn.Module, twin: nn.Module, kept: Mapping[int, torch.Tensor]
) -> list[tuple[nn.Module, str, int, torch.Tensor]]:
    """Which tensor of which module is cut along which dimension, to which experts."""
    layer_of = {
        id(module): index for index, layer in enumerate(family.decoder(model).layers) for module in layer.modules()
    }
    cuts = []
    for (path, old), new in zip(model.named_modules(), twin.modules(), strict=True):
        for name, tensor in [*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)]:
            shape = getattr(new, name).shape
            differing = [at for at, sizes in enumerate(zip(tensor.shape, shape, strict=True)) if len(set(sizes)) > 1]
            if not differing:
                continue
            index = layer_of.get(id(old))
            if len(differing) > 1 or index is None or index not in kept:
                raise UnsupportedModelError(
                    f"{path}.{name} depends on the number of experts in a way that dropping does not know: "
                    f"{tuple(tensor.shape)} would become {tuple(shape)}."
                )
            cuts.append((old, name, differing[0], kept[index]))
    return cuts


def _cut(owner: nn.Module, name: str, dimension: int, experts: torch.Tensor) -> None:
    """Replace one parameter or buffer by the part of it that belongs to the experts."""
    tensor = getattr(owner, name)
    part = tensor.detach().index_select(dimension, experts.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        part = nn.Parameter(part, requires_grad=tensor.requires_grad)
    setattr(owner, name, part)
