"""What a re-routed model does with its routers' logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ssmoe_embed.families import Score, family_of
from ssmoe_embed.routing.mixing import Mix, checked_alpha, mixed_logits
from ssmoe_embed.spectral.routers import SpectralRouters, fingerprint, same_router


class RoutingPolicy(Protocol):
    """Replaces the logits of every router; the family's own top-k rules then apply to them."""

    def check(self, model: nn.Module) -> None:
        """Raise a `ValueError` if the policy does not fit the model."""
        ...

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """The replacement logits.

        Args:
            layer: Index of the decoder layer.
            hidden: What entered the router, `[N,H]`.
            logits: What it made of it, `[N,E]`.
            score: The family's score function.

        Returns:
            `[N,E]` in the dtype of `logits`.
        """
        ...


@dataclass(frozen=True)
class SpectralMix:
    """How learned and spectral scores are mixed, whatever the spectral routers are.

    Attributes:
        alpha: The spectral router's share: 0 is the model's own routing bit for bit, 1 the spectral router alone.
        mix: Mix the scores (equation 5 of the paper) or the logits (its lemma 3.1).

    Raises:
        ValueError: `alpha` is outside [0, 1], or `mix` is unknown.
    """

    alpha: float = 0.5
    mix: Mix = Mix.PROBS

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checked_alpha(self.alpha))
        object.__setattr__(self, "mix", Mix.parse(self.mix, "mix"))


@dataclass(frozen=True)
class SpectralRouting:
    """The SSMoE router: learned and spectral scores mixed.

    Attributes:
        routers: The spectral routers of the model's layers.
        alpha: The spectral router's share: 0 is the model's own routing bit for bit, 1 the spectral router alone.
        mix: Mix the scores (equation 5 of the paper) or the logits (its lemma 3.1).

    Raises:
        ValueError: `alpha` is outside [0, 1], or `mix` is unknown.
    """

    routers: SpectralRouters
    alpha: float = 0.5
    mix: Mix = Mix.PROBS

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checked_alpha(self.alpha))
        object.__setattr__(self, "mix", Mix.parse(self.mix, "mix"))

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        self.routers.check(model)

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        if self.alpha == 0:
            return logits  # without the product that has no share in them
        return mixed_logits(logits, self.routers.logits(layer, hidden), self.alpha, self.mix, score)


def check_at_routers(policy: RoutingPolicy | None) -> None:
    """Make sure that a policy decides by logits, so that these tell what it chooses.

    Raises:
        ValueError: It decides at the experts.
    """
    if getattr(policy, "needs_experts", False):
        raise ValueError(
            f"{type(policy).__name__} decides at the experts, so logits do not tell what it chooses; pass a policy that "
            "replaces logits, such as SpectralRouting."
        )


def fingerprints_of(model: nn.Module) -> dict[int, torch.Tensor]:
    """What identifies each of a model's learned routers, `[E]` by layer; they are left out whose weights are elsewhere."""
    family = family_of(model)
    weights = {layer.index: family.router_weight(layer.router) for layer in family.layers(model)}
    return {index: fingerprint(weight) for index, weight in weights.items() if not weight.is_meta}


def check_made_for(model: nn.Module, fingerprints: Mapping[int, torch.Tensor], what: str) -> None:
    """Make sure that something was made for this model.

    Args:
        model: The model.
        fingerprints: Of the routers that it was made for, see `fingerprints_of`.
        what: What it is.

    Raises:
        ValueError: It was made for another.
    """
    for index, found in fingerprints_of(model).items():
        known = fingerprints.get(index)
        if known is None or known.shape != found.shape or not same_router(found, known):
            raise ValueError(f"{what} was made for another model: the routers of layer {index} differ. Make it anew.")
