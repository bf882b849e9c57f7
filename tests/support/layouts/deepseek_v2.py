from typing import ClassVar

import torch

from layouts.base import EXPERTS, Layout


class DeepseekV2(Layout):
    """Two of four groups of experts are open to a token; one dense layer; shared experts."""

    model_type = "deepseek_v2"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 2,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "norm_topk_prob": False,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    }
    sparse = (1, 2)

    def route(self, p, learned, tensors, layer, config):
        grouped = p.view(len(p), config.n_group, -1)  # [N,G,E/G]
        best = grouped.amax(dim=-1).topk(config.topk_group, dim=-1).indices
        open_to = torch.zeros(len(p), config.n_group, dtype=torch.bool).scatter_(1, best, True)
        allowed = (grouped * open_to.unsqueeze(-1)).flatten(1)
        weights, index = allowed.topk(config.num_experts_per_tok, dim=-1)
        return weights * config.routed_scaling_factor, index
