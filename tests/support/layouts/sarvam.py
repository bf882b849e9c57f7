from typing import ClassVar

from layouts.deepseek_v3 import DeepseekV3
from layouts.glm4_moe import Glm4Moe


class SarvamMoe(Glm4Moe):
    """Sarvam-30B: GLM-4's decoder under Ling's names on disk."""

    model_type = "sarvam_moe"
    bias = "gate.expert_bias"
    config: ClassVar = Glm4Moe.config | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5}


class SarvamMla(DeepseekV3):
    """Sarvam-105B: DeepSeek-V3's decoder, names and all."""

    model_type = "sarvam_mla"
    config: ClassVar = DeepseekV3.config | {"n_group": 1, "topk_group": 1, "q_lora_rank": None}
