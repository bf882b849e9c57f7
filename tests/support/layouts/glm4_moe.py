from typing import ClassVar

from layouts.base import EXPERTS
from layouts.deepseek_v3 import DeepseekV3


class Glm4Moe(DeepseekV3):
    """DeepSeek-V3's routing in another decoder."""

    model_type = "glm4_moe"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "use_qk_norm": True,
        "head_dim": 8,
    }


class Glm4MoeLite(DeepseekV3):
    """DeepSeek-V3's attention as well, the first layer dense."""

    model_type = "glm4_moe_lite"
    config: ClassVar = {name: value for name, value in DeepseekV3.config.items() if name != "first_k_dense_replace"} | {
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.8,
    }
