"""Kimi Linear (arXiv 2510.26692)."""

from ssmoe_embed.families.base import FamilyNotes
from ssmoe_embed.families.deepseek_v3 import DeepseekV3


class KimiLinear(DeepseekV3):
    """DeepSeek-V3's MoE layer under Mixtral's names, below linear and full attention."""

    models = {"kimi_linear": "Kimi-Linear-48B-A3B"}
    notes = FamilyNotes(
        weights=DeepseekV3.notes.weights,
        beside=DeepseekV3.notes.beside,
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
        unsupported=DeepseekV3.notes.unsupported,
    )
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = (
        "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    )
