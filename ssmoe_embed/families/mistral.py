"""Mixtral (arXiv 2401.04088) and Mistral 4."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Mixtral(MoEFamily):
    """The common layout in memory; older names on disk."""

    models = {"mixtral": "Mixtral-8x7B, Mixtral-8x22B", "minimax": "MiniMax-Text-01, MiniMax-M1"}
    notes = FamilyNotes(
        weights="softmax → top-k ÷ sum",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
    )
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = (
        "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    )


class Mistral4(MoEFamily):
    """DeepSeek-V3's layer with softmax scores and without the correction bias."""

    models = {"mistral4": "Mistral-Small-4-119B"}
    notes = FamilyNotes(
        weights=(
            "softmax; top-k of score within the best groups; weight = score, ÷ sum if `norm_topk_prob`, "
            "× `routed_scaling_factor`"
        ),
        beside="shared experts; the first `first_k_dense_replace` layers are dense",
        layout="all experts in one tensor, gate rows before up rows",
        unsupported="images",
    )
    matrix_names = ()
