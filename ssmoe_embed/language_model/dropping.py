"""Which experts a model keeps when some are dropped.

Source: SSMoE, section 4.1, https://arxiv.org/abs/2605.30992: a quarter of each layer's experts is dropped at random, by the
router's mean score over a calibration text, or by SSMoE's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import MoEFamily, UnsupportedModelError, family_of
from ssmoe_embed.routing.named import NAMED, canonical, is_named


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
            UnsupportedModelError: Its layers have different numbers of experts.
        """
        family = family_of(model)
        config = family.text_config(model.config)
        if len(family.blocks_with_experts(model)) > len(family.layers(model)):
            raise UnsupportedModelError(
                "Some layers of this model choose experts by token id, so none of them can be dropped. Choose another model."
            )
        counts = {family.expert_count(layer) for layer in family.layers(model)}
        if len(counts) != 1:
            raise UnsupportedModelError(
                f"The layers of this model have {sorted(counts)} experts; dropping needs one number for all of them."
            )
        return cls(counts.pop(), _top_k(family, model, config), *family.expert_groups(config))

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
        if self.groups > 1:
            self._check_groups(keep, count)
        return count

    def _check_groups(self, keep: float, count: int) -> None:
        """Refuse a number of experts that the model's groups do not allow."""
        size = count // self.groups
        enough = size >= 2 and size * self.kept_groups >= self.top_k
        if count % self.groups or not enough:
            allowed = [
                n
                for n in range(self.groups, self.experts + 1, self.groups)
                if n >= 2 * self.groups and n // self.groups * self.kept_groups >= self.top_k
            ]
            raise UnsupportedModelError(
                f"keep={keep} leaves {count} of {self.experts} experts, which the routing within {self.groups} groups "
                f"does not allow (equal groups of at least 2, and {self.kept_groups} of them hold the {self.top_k} experts "
                f"of a token). Possible are {', '.join(f'{n / self.experts:.4g}' for n in allowed)}."
            )


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


def _top_k(family: MoEFamily, model: PreTrainedModel, config: Any) -> int:
    """The most experts that any layer sends a token to."""
    found = [getattr(layer.router, "top_k", None) for layer in family.layers(model)]
    value = getattr(config, "num_experts_per_tok", None)
    found += value if isinstance(value, list | tuple) else [value]
    known = [int(one) for one in found if isinstance(one, int)]
    if not known:
        raise UnsupportedModelError(
            f"The configuration of {type(model).__name__} does not say how many experts a token gets."
        )
    return max(known)
