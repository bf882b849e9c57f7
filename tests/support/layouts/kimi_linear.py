from typing import ClassVar

from layouts.base import EXPERTS
from layouts.deepseek_v3 import DeepseekV3


class KimiLinear(DeepseekV3):
    """DeepSeek-V3's routing below linear attention, with Mixtral's names on disk."""

    model_type = "kimi_linear"
    block = "block_sparse_moe"
    projections = ("w1", "w3", "w2")
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "first_k_dense_replace": 1,
        "num_local_experts": EXPERTS,
        "n_shared_experts": 1,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    }
