"""Routing that ignores what a token means: the hash and random baselines of the paper's table 12.

Both hand the router's own logits of a token, in their own order, to other experts. So the chosen experts' weights are
those that the router would have given, and only *which* experts get them is changed. The family's own top-k follows;
where it adds a correction bias to the scores, that bias has its say.

Source: SSMoE, section D.4, https://arxiv.org/abs/2605.30992.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ssmoe_embed.families import Score
from ssmoe_embed.routing.tokens import Tokens, current_tokens

_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class HashRouting:
    """A token's experts follow from its id alone: the same in every text, another choice in every layer."""

    seed: int = 0
    needs_tokens = True  # `reroute` then has the model note them

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`; it fits every model."""

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        tokens = current_tokens(len(logits))
        return dealt(logits, expert_order(self.seed, layer, self.keys(tokens), logits.shape[-1]))

    @staticmethod
    def keys(tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """What the order of experts depends on, `[N]` each."""
        return (tokens.ids,)


@dataclass(frozen=True)
class RandomRouting(HashRouting):
    """A token's experts are drawn anew at every place: they follow from its id and its place in its text.

    They depend on nothing else, so that neighbours in a batch, padding and a key-value cache change nothing.
    """

    @staticmethod
    def keys(tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """See `HashRouting.keys`."""
        return tokens.ids, tokens.positions


def dealt(logits: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Each token's logits `[N,E]`, the largest given to the first expert of its `order [N,E]`, and so on."""
    return torch.empty_like(logits).scatter_(-1, order.to(logits.device), logits.sort(dim=-1, descending=True).values)


def expert_order(seed: int, layer: int, keys: tuple[torch.Tensor, ...], experts: int) -> torch.Tensor:
    """A pseudo-random order of the experts for each token, the same on every device and version.

    Args:
        seed: Of the order.
        layer: Index of the decoder layer.
        keys: What the order depends on, integers `[N]` each.
        experts: `E`.

    Returns:
        A permutation of the experts a token, `[N,E]`.
    """
    state = torch.full_like(keys[0], seed).long()
    for key in (torch.full_like(keys[0], layer), *keys):
        state = _scrambled(state + key.long() + 0x9E3779B9)
    each = torch.arange(experts, device=state.device)
    draws = _scrambled(_scrambled(state[:, None] ^ _scrambled(each + 1)))  # [N,1] and [E] → [N,E]
    return draws.argsort(dim=-1, stable=True)


def _scrambled(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash, elementwise: xor-shifts and odd multiplications, each of which can be undone."""
    value = value & _BITS
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & _BITS
    return value ^ (value >> 16)
