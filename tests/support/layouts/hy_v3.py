from typing import ClassVar

import torch

from layouts.base import EXPERTS, Layout, biased_top_k


class HyV3(Layout):
    """Sigmoid scores, a bias that only chooses, a scaling factor; the first layer is dense."""

    model_type = "hy_v3"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "router_scaling_factor": 2.8,
        "head_dim": 8,
    }
    sparse = (1, 2)
    gate = "router.gate.weight"
    score = "sigmoid"
    bias = "expert_bias"
    scaling = "router_scaling_factor"

    def route(self, p, learned, tensors, layer, config):
        index = biased_top_k(p, tensors[self.start(layer) + self.bias].double(), config.num_experts_per_tok)
        weights = torch.gather(p, 1, index)
        return weights / weights.sum(dim=-1, keepdim=True) * getattr(config, self.scaling), index
