from typing import ClassVar

from layouts.base import EXPERTS, Layout


class Qwen2Moe(Layout):
    """A dense layer between two sparse ones, and a shared expert."""

    model_type = "qwen2_moe"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "num_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 28,
        "norm_topk_prob": False,
        "num_experts_per_tok": 3,
    }
    sparse = (0, 2)
