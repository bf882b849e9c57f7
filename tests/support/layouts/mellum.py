from typing import ClassVar

from layouts.base import EXPERTS, Layout


class Mellum(Layout):
    """Qwen3's experts; sliding windows and full attention, each with rotary positions of its own; a dense layer."""

    model_type = "mellum"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "head_dim": 8,
        "sliding_window": 16,
    }
    sparse = (1, 2)
