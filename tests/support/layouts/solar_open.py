from typing import ClassVar

from layouts.base import EXPERTS
from layouts.deepseek_v3 import DeepseekV3


class SolarOpen(DeepseekV3):
    """DeepSeek-V3's routing in every layer."""

    model_type = "solar_open"
    sparse = (0, 1)
    config: ClassVar = {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 1.5,
        "head_dim": 8,
    }

    def save(self, model, folder):
        model.save_pretrained(folder)
