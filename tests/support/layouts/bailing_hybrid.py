from typing import ClassVar

from layouts.base import EXPERTS
from layouts.deepseek_v3 import DeepseekV3


class BailingHybrid(DeepseekV3):
    """Ling-3.0: linear attention and DeepSeek-V3's; the bias has a name of its own on disk."""

    model_type = "bailing_hybrid"
    bias = "gate.expert_bias"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_group_size": 2,
        "first_k_dense_replace": 1,
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "head_dim": 8,
        "num_key_value_heads": 4,
    }
