"""Joining the hidden-state block and the routing block into one vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import normalize

from ssmoe_embed.embedding.settings import Combination

HIDDEN = "hidden"
ROUTING = "routing"


def combine(blocks: Mapping[str, torch.Tensor], combination: Combination, routing_weight: float) -> torch.Tensor:
    """One vector a text.

    MoEE (https://arxiv.org/abs/2410.10814) adds the blocks' cosines with weights; `sum` puts that into the vectors: with
    each block of unit length times √weight, one dot product is the weighted sum of cosines, so any vector index serves it.

    Args:
        blocks: `"hidden" [B,H]` and `"routing" [B,ΣE]`, or one of them.
        combination: How to join them.
        routing_weight: The routing block's weight in a `sum`.

    Returns:
        `[B,D]`, `D` the sum of the blocks' sizes.
    """
    if combination is Combination.CONCAT:
        return torch.cat(list(blocks.values()), dim=-1)
    weights = {HIDDEN: 1.0, ROUTING: routing_weight}
    return torch.cat([normalize(block, dim=-1) * weights[name] ** 0.5 for name, block in blocks.items()], dim=-1)
