"""What the parts of a model take in memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import nn

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import MoEFamily, family_of
from ssmoe_embed.quantization.packed import PackedMatrices


class Component(Choice):
    """A part of an embedding model."""

    EMBEDDINGS = "embeddings"
    ATTENTION = "attention"
    """And what stands in its place, such as state-space layers."""
    EXPERTS = "experts"
    SHARED_EXPERTS = "shared experts"
    """With their gates."""
    DENSE = "dense layers"
    """MLPs without experts."""
    ROUTERS = "routers"
    SPECTRAL_ROUTERS = "spectral routers"
    """W_EV, its fingerprints and its copy on the model's device."""
    CALIBRATION = "calibration"
    OTHER = "norms and other"


def memory_by_component(model: nn.Module) -> dict[Component, int]:
    """Bytes of every part of a model, packed or not. A tensor that two parts share counts once.

    Args:
        model: A transformers MoE model, an `SSMoE` module, or a `SentenceTransformer` that begins with one.

    Returns:
        Bytes by component, all components included.

    Raises:
        UnsupportedModelError: The model's family has no adapter.
    """
    sizes = dict.fromkeys(Component, 0)
    seen: set[int] = set()
    for component, tensor in _tensors(model):
        storage = tensor.untyped_storage()
        if tensor.is_meta or storage.data_ptr() in seen:
            continue
        seen.add(storage.data_ptr())
        sizes[component] += storage.nbytes()
    return sizes


def weight_count(model: nn.Module) -> int:
    """How many numbers a transformers model has learned, packed or not."""
    packed = [prod(module.shape) for module in model.modules() if isinstance(module, PackedMatrices)]
    return sum(packed) + sum(weight.numel() for weight in model.parameters())


def _tensors(model: Any) -> Iterator[tuple[Component, torch.Tensor]]:
    """Every tensor with its component."""
    if isinstance(model, nn.Sequential):
        model = model[0]
    routers, calibrations = getattr(model, "routers", None), getattr(model, "calibrations", {})
    base = model.model if hasattr(model, "calibrations") else model
    yield from _base_tensors(base)
    if routers is not None:
        for tensor in [*routers.tensors().values(), *routers._placed.values()]:
            yield Component.SPECTRAL_ROUTERS, tensor
    for calibration in getattr(calibrations, "factors", {}).values():
        for value in vars(calibration).values():
            if isinstance(value, torch.Tensor):
                yield Component.CALIBRATION, value


def _base_tensors(model: Any) -> Iterator[tuple[Component, torch.Tensor]]:
    """The base model's parameters and buffers, and the tensors that modules hold as plain attributes."""
    family = family_of(model.config)
    places = _places(model, family)
    for path, module in model.named_modules():
        owned = [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]
        for name, value in owned:
            if isinstance(value, torch.Tensor):
                yield _component(f"{path}.{name}", places), value


def _places(model: Any, family: MoEFamily) -> list[tuple[str, Component]]:
    """Prefixes of names with their components; the first that fits holds."""
    names = {id(module): f"{name}." for name, module in model.named_modules()}
    places = [(names[id(model.get_input_embeddings())], Component.EMBEDDINGS)]
    head = model.get_output_embeddings()
    if head is not None:
        places.append((names[id(head)], Component.EMBEDDINGS))
    layers = family.blocks_with_experts(model)
    for layer in layers:
        places.append((names[id(layer.router)], Component.ROUTERS))
        places.append((names[id(layer.experts)], Component.EXPERTS))
    held = {id(part) for layer in layers for part in (layer.block, layer.router, layer.experts)}
    for layer in family.decoder(model).layers:
        for name, module in layer.named_children():
            if "norm" in name:
                continue
            for part, child in module.named_modules(prefix=name):
                if "shared" in part.rsplit(".", 1)[-1]:
                    places.append((names[id(child)], Component.SHARED_EXPERTS))
            if family.is_attention(layer, name):
                places.append((names[id(module)], Component.ATTENTION))
            elif id(module) not in held:
                places.append((names[id(module)], Component.DENSE))
    return places


def _component(name: str, places: list[tuple[str, Component]]) -> Component:
    return next((component for prefix, component in places if name.startswith(prefix)), Component.OTHER)
