"""A dense model that computes what its division into experts would: neurons of experts that were not chosen count nothing.

As fast as the dense model, and gradients reach the routers. A test holds it to the checkpoint that is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from split_dense.layers import Layer
from split_dense.routers import Router, gates


class Masked(nn.Module):
    """One layer's feed-forward part under a router.

    Args:
        mlp: The dense part, with `gate_proj`, `up_proj`, `down_proj` and `act_fn`.
        layer: How it is divided.
        k: Experts per token.
    """

    def __init__(self, mlp: Any, layer: Layer, k: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.k = k
        self.weight = nn.Parameter(layer.router.weight.float().clone())
        self.log_scale = nn.Parameter(layer.router.scale.float().log())
        owner = torch.full((layer.shared.numel() + layer.experts.numel(),), len(layer.experts))
        for expert, neurons in enumerate(layer.experts):
            owner[neurons] = expert
        self.owner = owner
        self.counts = torch.zeros(len(layer.experts))

    def forward(self, inputs: Tensor) -> Tensor:
        """See the dense part."""
        chosen = gates(inputs.float() @ self.weight.T, self.k)
        with torch.no_grad():
            self.counts += (chosen > 0).float().flatten(0, -2).sum(0)
        weights = self.k * chosen * self.log_scale.exp()
        mask = torch.cat([weights, weights.new_ones(*weights.shape[:-1], 1)], -1).to(inputs.dtype)
        active = self.mlp.act_fn(self.mlp.gate_proj(inputs)) * self.mlp.up_proj(inputs)
        return self.mlp.down_proj(active * mask[..., self.owner])

    def layer(self, before: Layer) -> Layer:
        """The division with the router as it is now."""
        router = before.router
        weight, scale = self.weight.detach().clone(), self.log_scale.detach().exp()
        return Layer(before.shared, before.experts, Router(weight, scale, router.error, self.load()))

    def load(self) -> Tensor:
        """`[E]`: the share of the tokens read that chose each expert."""
        return self.counts * self.k / self.counts.sum().clamp(min=1)


@contextmanager
def divided(model: PreTrainedModel, layers: Sequence[Layer], k: int) -> Iterator[list[Masked]]:
    """A dense base model under its division, inside the block."""
    made = [Masked(block.mlp, layer, k) for block, layer in zip(model.layers, layers, strict=True)]
    for block, masked in zip(model.layers, made, strict=True):
        block.mlp = masked
    try:
        yield made
    finally:
        for block, masked in zip(model.layers, made, strict=True):
            block.mlp = masked.mlp
