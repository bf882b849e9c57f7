from typing import ClassVar

from layouts.base import EXPERTS
from layouts.deepseek_v3 import DeepseekV3


class ExaoneMoe(DeepseekV3):
    """K-EXAONE: sliding windows and full attention; the bias belongs to the block on disk."""

    model_type = "exaone_moe"
    bias = "e_score_correction_bias"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "head_dim": 8,
    }
