"""What a re-routed model does with its routers' logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ssmoe_embed.families import Score
from ssmoe_embed.routing.mixing import Mix, checked_alpha, mixed_logits
from ssmoe_embed.spectral.routers import SpectralRouters


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
    """The SSMoE router: learned and spectral scores mixed; `alpha` and `mix` are those of `SpectralMix`.

    Attributes:
        routers: The spectral routers of the model's layers.

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
