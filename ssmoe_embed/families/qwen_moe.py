"""Qwen1.5-MoE and Qwen2-MoE (one architecture), Qwen3-MoE (arXiv 2505.09388) and Mellum 2, and Qwen3-Next."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily

_DENSE = "dense layers by `mlp_only_layers`, `decoder_sparse_step` or `mlp_layer_types`"


class Qwen2Moe(MoEFamily):
    """The common layout. The shared expert serves every token, so no router chooses it and it has no row in W_EV."""

    models = {"qwen2_moe": "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", "qwen3_next": "Qwen3-Next-80B-A3B"}
    notes = FamilyNotes(
        weights="softmax → top-k; ÷ sum if `norm_topk_prob`",
        beside=f"a shared expert with a sigmoid gate of its own; {_DENSE}",
    )


class Qwen3Moe(MoEFamily):
    """The common layout."""

    models = {"qwen3_moe": "Qwen3-30B-A3B, Qwen3-235B-A22B", "mellum": "Mellum2-12B-A2.5B"}
    notes = FamilyNotes(weights="softmax → top-k; ÷ sum if `norm_topk_prob`", beside=_DENSE)
