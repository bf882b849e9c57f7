from typing import ClassVar

from layouts.deepseek_v3 import DeepseekV3


class DeepseekV32(DeepseekV3):
    """DeepSeek-V3 whose attention picks the tokens that it looks at."""

    model_type = "deepseek_v32"
    config: ClassVar = DeepseekV3.config | {"index_topk": 64, "index_head_dim": 16, "index_n_heads": 2}


class GlmMoeDsa(DeepseekV32):
    """GLM-5: the same, with one group."""

    model_type = "glm_moe_dsa"
    config: ClassVar = DeepseekV32.config | {"n_group": 1, "topk_group": 1}
