"""Routing by the mean of a router's scores over noisy copies of its input.

Source of the idea: S2MoE, https://arxiv.org/abs/2503.23007, which trains experts on a noisy second input; its equations and
noise are not published in what we could read. What is left without training is a smoothed router, our reading.

A router is linear, so noise `ε` on its input moves its logits by `R ε`. The same draws are used for every token, in
proportion to the root mean square of its input: they depend on nothing but seed and layer, and cost no product more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssmoe_embed.families import Score, family_of
from ssmoe_embed.routing.mixing import logits_of, scores
from ssmoe_embed.routing.policies import check_made_for, fingerprints_of


@dataclass(frozen=True)
class SmoothedSettings:
    """The settings of `smoothed`.

    Attributes:
        noise: Standard deviation of the noise, as a multiple of the root mean square of a token's input; at 0 routing is
            the model's own, bit for bit.
        copies: Noisy copies.
        seed: Of the noise.

    Raises:
        ValueError: A value is not allowed.
    """

    noise: float = 0.1
    copies: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < torch.inf or isinstance(self.copies, float) or self.copies < 1:
            raise ValueError(
                f"noise={self.noise!r}, copies={self.copies!r}: noise must be at least 0, copies at least 1."
            )

    def made(self, model: nn.Module, tokenizer: Any = None) -> SmoothedRouting:
        """The policy for a model."""
        del tokenizer
        family, shifts = family_of(model), {}
        for layer in family.layers(model):
            matrix = family.router_weight(layer.router).detach().float().cpu()  # [E,H]
            generator = torch.Generator().manual_seed(1000 * self.seed + layer.index)
            noise = torch.randn(self.copies, matrix.shape[1], generator=generator)
            shifts[layer.index] = self.noise * noise @ matrix.T  # [M,E]
        return SmoothedRouting(shifts, fingerprints_of(model))


@dataclass(frozen=True)
class SmoothedRouting:
    """See `SmoothedSettings`.

    Attributes:
        shifts: What each copy's noise adds to the logits of an input of root mean square 1, `[M,E]` by layer.
        fingerprints: Of the routers that it was made for.
    """

    shifts: dict[int, torch.Tensor]
    fingerprints: dict[int, torch.Tensor]

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        check_made_for(model, self.fingerprints, "This smoothed routing")

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        shifts = self.shifts[layer].to(logits.device)
        if not shifts.any():
            return logits
        size = hidden.float().square().mean(dim=-1).sqrt()[:, None, None]  # [N,1,1]
        copies = logits.float()[:, None] + size * shifts  # [N,M,E]
        return logits_of(scores(copies, score).mean(dim=1), logits, score).to(logits.dtype)
