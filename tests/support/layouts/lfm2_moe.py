from typing import ClassVar

import torch

from layouts.base import EXPERTS, Layout, biased_top_k


class Lfm2Moe(Layout):
    """A dense layer first; short convolutions; a bias that only chooses."""

    model_type = "lfm2_moe"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
        "num_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "conv_L_cache": 3,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "num_experts_per_tok": 3,
    }
    sparse = (1, 2)
    block = "feed_forward"
    projections = ("w1", "w3", "w2")
    score = "sigmoid"
    live_block = "feed_forward"

    def route(self, p, learned, tensors, layer, config):
        bias = tensors[self.start(layer) + "expert_bias"].double() if config.use_expert_bias else 0 * p[0]
        index = biased_top_k(p, bias, config.num_experts_per_tok)
        weights = torch.gather(p, 1, index)  # without the bias
        if config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        return weights * config.routed_scaling_factor, index
