"""Mean pooling: the mean of the last hidden states of all tokens, template included."""

from __future__ import annotations

import torch

from ssmoe_embed.evaluation.baselines.base import ModelBaseline


class MeanPooling(ModelBaseline):
    """The mean of the last hidden states of all tokens, template included."""

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        return mean_of(self.read(tokens).tokens, tokens.get("pooled", tokens["attention_mask"]))


def mean_of(tokens: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """The mean of states `[B,T,H]` where `pooled [B,T]` is 1, float32 `[B,H]`."""
    weights = pooled.to(tokens.device).unsqueeze(-1).float()  # [B,T,1]
    return torch.where(weights > 0, tokens.float(), 0.0).sum(dim=1) / weights.sum(dim=1)
