from typing import ClassVar

from layouts.base import EXPERTS, Layout


class Qwen3Moe(Layout):
    """Its checkpoint is spread over several files."""

    model_type = "qwen3_moe"
    config: ClassVar = {
        "num_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 24,
        "head_dim": 8,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
    }

    def save(self, model, folder):
        model.save_pretrained(folder, max_shard_size="60KB")
