"""Qwen1.5-MoE and Qwen2-MoE (one architecture), and Qwen3-MoE (arXiv 2505.09388)."""

from ssmoe_embed.families.base import MoEFamily


class QwenMoe(MoEFamily):
    """The common layout. Qwen2's shared expert serves every token, so no router chooses it and it has no row in W_EV."""

    model_types = ("qwen2_moe", "qwen3_moe")
