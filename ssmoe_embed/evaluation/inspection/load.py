"""How evenly tokens spread over experts, and which tokens an expert gets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Load:
    """The experts' shares of the tokens in one layer.

    Attributes:
        shares: Choices of each expert divided by those of a mean one, `E` numbers: 1 is even.
        entropy: Entropy of the shares, divided by its maximum `log E`: 1 is even.
        dead: Experts that no token went to.
        choices: Choices counted, `N·k`.
    """

    shares: tuple[float, ...]
    entropy: float
    dead: tuple[int, ...]
    choices: int


def load(chosen: torch.Tensor, experts: int) -> Load:
    """The load of one layer.

    Args:
        chosen: The experts that each token went to, `[N,k]`.
        experts: `E`.
    """
    counts = torch.bincount(chosen.flatten(), minlength=experts).double()  # [E]
    p = counts / counts.sum()
    entropy = float(-torch.xlogy(p, p).sum()) / math.log(experts) if experts > 1 else 1.0
    return Load(
        shares=tuple((p * experts).tolist()),
        entropy=entropy,
        dead=tuple(int(expert) for expert in (counts == 0).nonzero()[:, 0]),
        choices=chosen.numel(),
    )


def top_tokens(tokens: torch.Tensor, chosen: torch.Tensor, experts: int, count: int = 8) -> list[list[int]]:
    """The tokens that most set each expert apart.

    Ranked by `n_te · log(n_te·C / (n_t·n_e))`: how often token and expert meet, times how much more often than if the
    expert chose blindly.

    Args:
        tokens: Token ids, `[N]`.
        chosen: The experts that each token went to, `[N,k]`.
        experts: `E`.
        count: Tokens an expert, at most.

    Returns:
        Token ids for each expert; those that it gets no more often than by chance are left out.
    """
    ids, places = torch.unique(tokens, return_inverse=True)  # [V], [N]
    pairs = places[:, None] * experts + chosen  # [N,k]
    met = torch.bincount(pairs.flatten(), minlength=len(ids) * experts).reshape(len(ids), experts).double()  # [V,E]
    by_chance = met.sum(dim=1, keepdim=True) * met.sum(dim=0, keepdim=True) / met.sum()
    score = torch.where(met > 0, met * (met / by_chance.clamp_min(1e-300)).clamp_min(1e-300).log(), 0.0)
    best = score.T.topk(min(count, len(ids)), dim=1)  # [E,count]
    return [
        [int(ids[place]) for value, place in zip(*row, strict=True) if value > 0]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
