"""Which experts a model keeps when some are dropped, and removing the others from a live model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import MoEFamily, UnsupportedModelError, family_of
from ssmoe_embed.routing.named import NAMED, canonical, is_named
from ssmoe_embed.routing.sites import is_rerouted


class DropBy(Choice):
    """What decides which experts are dropped."""

    RANDOM = "random"
    """Chance."""
    ROUTER = "router"
    """The lowest mean score of the model's own router."""
    SSMOE = "ssmoe"
    """The lowest mean score of the SSMoE router, under whose routing the calibration text is read."""


def parse_drop_by(by: str) -> str:
    """What decides which experts are dropped: a value of `DropBy`, or a routing by name whose mean scores do.

    Raises:
        FileNotFoundError: A file that the routing names does not exist.
        ValueError: It is neither, or the routing decides at the experts and has no scores of its own.
    """
    if by in list(DropBy) or not is_named(by):
        return DropBy.parse(by, "by")
    if getattr(NAMED[by.partition(":")[0]].kind, "needs_experts", False):
        raise ValueError(
            f"by={by!r} scores no experts by itself; choose a routing that replaces logits, such as steer."
        )
    return canonical(by)


@dataclass(frozen=True)
class Limits:
    """What a model's own routing demands of the number of experts.

    Attributes:
        experts: `E`, the experts of each layer.
        top_k: Experts a token.
        groups: Groups that experts are chosen from, of equal size; 1 for none.
        kept_groups: Groups a token may use.
    """

    experts: int
    top_k: int
    groups: int = 1
    kept_groups: int = 1

    @classmethod
    def of(cls, model: PreTrainedModel) -> Limits:
        """The limits of a model.

        Raises:
            UnsupportedModelError: Its layers have different numbers of experts, or do not say how many a token gets.
        """
        family = family_of(model)
        config = family.text_config(model.config)
        if len(family.blocks_with_experts(model)) > len(family.layers(model)):
            raise UnsupportedModelError(
                "Some layers of this model choose experts by token id, so none of them can be dropped. Choose another model."
            )
        count = _count(family, model)
        stated = getattr(config, "num_experts_per_tok", None)
        found = list(stated) if isinstance(stated, list | tuple) else [stated]
        found += [getattr(layer.router, "top_k", None) for layer in family.layers(model)]
        top_k = max((int(one) for one in found if isinstance(one, int)), default=None)  # the most of any layer
        if top_k is None:
            raise UnsupportedModelError(
                f"The configuration of {type(model).__name__} does not say how many experts a token gets."
            )
        return cls(count, top_k, *family.expert_groups(config))

    def kept(self, keep: float) -> int:
        """How many experts a layer keeps of a fraction: rounded up.

        Raises:
            ValueError: The fraction is not in (0, 1], or keeps fewer experts than a token needs.
            UnsupportedModelError: The kept experts cannot be divided into the model's groups.
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep!r} is not a fraction above 0 and up to 1; 0.75 is the paper's.")
        count = math.ceil(float(keep) * self.experts - 1e-9)
        if count < self.top_k:
            raise ValueError(
                f"keep={keep} leaves {count} of {self.experts} experts, but the model sends every token to {self.top_k}; "
                f"keep at least {self.top_k / self.experts:.4g}."
            )
        allowed = [
            n
            for n in range(2 * self.groups, self.experts + 1, self.groups)
            if n // self.groups * self.kept_groups >= self.top_k
        ]
        if self.groups > 1 and count not in allowed:
            raise UnsupportedModelError(
                f"keep={keep} leaves {count} of {self.experts} experts, which the routing within {self.groups} groups "
                f"does not allow (equal groups of at least 2, and {self.kept_groups} of them hold the {self.top_k} experts "
                f"of a token). Possible are {', '.join(f'{n / self.experts:.4g}' for n in allowed)}."
            )
        return count


def choose(scores: Mapping[int, torch.Tensor], count: int, groups: int = 1) -> dict[int, torch.Tensor]:
    """The best experts of each layer, in their old order.

    Args:
        scores: Each expert's score `[E]`, by layer.
        count: How many to keep.
        groups: Groups of neighbouring experts that must keep equally many each.

    Returns:
        Indices of the kept experts, ascending, `[count]` by layer.
    """
    kept = {}
    for layer, score in scores.items():
        grouped = score.reshape(groups, -1)  # [E] → [groups,E/groups]
        best = grouped.topk(count // groups, dim=-1).indices
        starts = torch.arange(groups)[:, None] * grouped.shape[1]
        kept[layer] = (best + starts).flatten().sort().values
    return kept


def random_scores(model: PreTrainedModel, seed: int) -> dict[int, torch.Tensor]:
    """Scores by chance, `[E]` by layer."""
    family = family_of(model)
    generator = torch.Generator().manual_seed(seed)
    return {layer.index: torch.rand(family.expert_count(layer), generator=generator) for layer in family.layers(model)}


def _count(family: MoEFamily, model: PreTrainedModel) -> int:
    """The number of experts of every layer."""
    counts = {family.expert_count(layer) for layer in family.layers(model)}
    if len(counts) != 1:
        raise UnsupportedModelError(
            f"The layers of this model have {sorted(counts)} experts; dropping needs one number for all of them."
        )
    return counts.pop()


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
    fields = _count_fields(family, model)
    config = copy.deepcopy(model.config)
    for field in fields:
        setattr(family.text_config(config), field, count)
    try:
        with torch.device("meta"):
            twin: nn.Module = type(model)(config)
    except (ValueError, RuntimeError, TypeError) as error:
        raise UnsupportedModelError(f"{type(model).__name__} cannot have {count} experts: {error}") from error
    for owner, name, dimension, experts in _cuts(family, model, twin, kept):
        tensor = getattr(owner, name)
        part = tensor.detach().index_select(dimension, experts.to(tensor.device))
        is_weight = isinstance(tensor, nn.Parameter)
        setattr(owner, name, nn.Parameter(part, requires_grad=tensor.requires_grad) if is_weight else part)
    for old, new in zip(model.modules(), twin.modules(), strict=True):
        for name, value in vars(new).items():
            if type(value) is int and type(vars(old).get(name)) is int:
                setattr(old, name, value)  # counts that the layers keep beside the configuration
    for field in fields:
        setattr(family.text_config(model.config), field, count)


def _count_fields(family: MoEFamily, model: PreTrainedModel) -> list[str]:
    """The fields of the configuration that hold the number of experts."""
    count = _count(family, model)
    settings = family.text_config(model.config).to_dict()
    named = [name for name in settings if "expert" in name and not any(word in name for word in _NOT_COUNTS)]
    fields = [name for name in named if type(settings[name]) is int and settings[name] == count]
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
