"""Policies that tell what a spectral router's choice is worth, where its weights say little.

Over few experts a spectral router's softmax is nearly flat, so any two of CLIP-MoE's four are weighed nearly ½ : ½. What is
then due to the choice, and what to equal weights? `EqualWeights()` keeps the learned router's choice,
`EqualWeights(RandomRouting())` draws one, `LeastSimilar(routers)` takes the worst one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ssmoe_embed.families import Score
from ssmoe_embed.routing.policies import RoutingPolicy
from ssmoe_embed.routing.tokens import needs_tokens
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class EqualWeights:
    """A policy's choice of experts, all chosen ones with the same weight.

    Attributes:
        policy: What chooses; None for the learned router.
        top_k: How many are chosen, as the model's configuration says.

    Raises:
        ValueError: `top_k` is less than 1.
    """

    policy: RoutingPolicy | None = None
    top_k: int = 2

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} chooses no expert; pass the model's own num_experts_per_tok.")

    @property
    def needs_tokens(self) -> bool:
        """Whether what chooses does so by token."""
        return needs_tokens(self.policy)

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        own = getattr(model.config, "num_experts_per_tok", self.top_k)
        if own != self.top_k:
            raise ValueError(f"top_k={self.top_k}, but the model chooses {own} experts per token; pass top_k={own}.")
        if self.policy is not None:
            self.policy.check(model)

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`; experts that are not chosen get the least finite logit."""
        made = logits if self.policy is None else self.policy.logits(layer, hidden, logits, score)
        chosen = made.topk(self.top_k, dim=-1).indices  # [N,k]
        return torch.full_like(made, torch.finfo(made.dtype).min).scatter_(-1, chosen, 0.0)


@dataclass(frozen=True)
class LeastSimilar:
    """The experts whose spectral embeddings are *least* similar to the token: the spectral router the wrong way round.

    Attributes:
        routers: The spectral routers of the model's layers.
    """

    routers: SpectralRouters

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        self.routers.check(model)

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        return -self.routers.logits(layer, hidden).to(logits.dtype)
