"""Mistral 4 (https://huggingface.co/mistralai), alone or inside Mistral 3's wrapper, which also sees."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


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
