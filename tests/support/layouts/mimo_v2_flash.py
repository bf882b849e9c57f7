from typing import ClassVar

from layouts.base import EXPERTS
from layouts.deepseek_v3 import DeepseekV3


class MimoV2Flash(DeepseekV3):
    """MiMo-V2-Flash: DeepSeek-V3's routing without shared experts; sliding windows with sinks."""

    model_type = "mimo_v2_flash"
    shared = False
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "n_routed_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "head_dim": 12,
        "v_head_dim": 8,
        "sliding_window": 17,
    }
