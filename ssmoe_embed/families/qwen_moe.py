"""Qwen1.5-MoE and Qwen2-MoE (one architecture), and Qwen3-MoE (arXiv 2505.09388)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Qwen2Moe(MoEFamily):
    """The common layout. The shared expert serves every token, so no router chooses it and it has no row in W_EV."""

    model_types = ("qwen2_moe",)
    notes = FamilyNotes(
        models="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
        weights="softmax → top-k; ÷ sum if `norm_topk_prob`",
        beside="a shared expert with a sigmoid gate of its own; dense layers by `mlp_only_layers`, `decoder_sparse_step`",
    )


class Qwen3Moe(MoEFamily):
    """The common layout."""

    model_types = ("qwen3_moe",)
    notes = FamilyNotes(
        models="Qwen3-30B-A3B, Qwen3-235B-A22B",
        weights="softmax → top-k; ÷ sum if `norm_topk_prob`",
        beside="dense layers by `mlp_only_layers`, `decoder_sparse_step`",
    )
