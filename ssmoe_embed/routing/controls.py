"""Controls: routings that take away one thing that a routing does, to see what it was good for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssmoe_embed.families import Score
from ssmoe_embed.routing.experts import DecidesAtExperts, ExpertsCall
from ssmoe_embed.routing.mixing import scores
from ssmoe_embed.routing.policies import RoutingPolicy, check_at_routers
from ssmoe_embed.routing.tokens import needs_tokens
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings


@dataclass(frozen=True)
class EqualShares(DecidesAtExperts):
    """The experts that each router chooses, each with the mean of the weights that it would give them.

    So the choice and the sum of the weights are the family's own, and all that is gone is the difference between experts.
    """

    def assign(self, call: ExpertsCall) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DecidesAtExperts.assign`."""
        p, k = scores(call.logits, call.score), call.index.shape[1]  # [N,E]
        total = torch.ones_like(p[:, :1]) if call.weighting.normalises else p.gather(1, call.index).sum(1, keepdim=True)
        kept = torch.zeros_like(p, dtype=torch.bool).scatter_(1, call.index, value=True)
        return kept, (call.weighting.scale * total / k).expand_as(p)


@dataclass(frozen=True)
class EqualWeights:
    """A policy's choice of experts by their logits, all chosen ones with the same logit, the others with none.

    Where a family normalises weights, this is what `EqualShares` is, for any policy; elsewhere the weights' sum changes.

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
        check_at_routers(self.policy)
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
class LeastSimilarSettings:
    """The settings of `least-similar`.

    Attributes:
        top_c: Eigenvectors kept of each expert matrix, see `SpectralSettings`.

    Raises:
        ValueError: The value is not allowed.
    """

    top_c: int | float = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_c", SpectralSettings(self.top_c).top_c)

    def made(self, model: Any, tokenizer: Any = None) -> LeastSimilar:
        """The policy for a model."""
        return LeastSimilar(SpectralRouters.of(model, SpectralSettings(self.top_c), progress=False))


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
