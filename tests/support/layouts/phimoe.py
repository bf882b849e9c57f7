from typing import ClassVar

import torch

from layouts.base import EXPERTS, Layout


class PhiMoe(Layout):
    """Sparsemixer: how near a logit is to the best is judged relative to the logits' size, so their offset matters."""

    model_type = "phimoe"
    config: ClassVar = {
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "router_jitter_noise": 0.2,  # 0.01 in the published model, which leaves one logit near the best, and weight 1
    }
    block = "block_sparse_moe"
    projections = ("w1", "w3", "w2")
    live_gate = "router"

    def route(self, p, learned, tensors, layer, config):
        logits = learned + p.log() - torch.log_softmax(learned, dim=-1)  # with scores p and the learned logits' offset
        weights, index, open_to = [], [], torch.ones_like(logits, dtype=torch.bool)
        for _ in range(2):
            left = logits.masked_fill(~open_to, -torch.inf)
            best = left.max(dim=-1, keepdim=True)
            distance = (best.values - logits) / torch.maximum(logits.abs(), best.values)
            near = left.masked_fill(distance > 2 * config.router_jitter_noise, -torch.inf)
            weights.append(near.softmax(dim=-1).gather(1, best.indices))
            index.append(best.indices)
            open_to = open_to.scatter(1, best.indices, False)
        return torch.cat(weights, dim=1), torch.cat(index, dim=1)
