from typing import ClassVar

from layouts.base import EXPERTS, Layout
from layouts.deepseek_v3 import DeepseekV3


class Dots1(DeepseekV3):
    """DeepSeek-V3's routing without groups, and without normalisation here."""

    model_type = "dots1"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 2,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 2,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": False,
        "head_dim": 8,
    }
    sparse = (2,)

    def save(self, model, folder):
        Layout.save(self, model, folder)
