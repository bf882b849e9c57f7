from typing import ClassVar

from layouts.base import EXPERTS, Layout


class Qwen3Next(Layout):
    """Linear attention, linear attention beside a dense layer, full attention; a shared expert in the sparse layers."""

    model_type = "qwen3_next"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "mlp_only_layers": [1],
        "num_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 28,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
    }
    sparse = (0, 2)
