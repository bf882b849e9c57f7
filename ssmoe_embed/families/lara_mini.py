"""Lara 4 Mini (https://huggingface.co/translated/Lara-4-Mini-Base)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class LaraMini(MoEFamily):
    """Linear attention, sliding windows and full attention take turns; saved under the names that it has in memory."""

    models = {"lara_mini": "Lara-4-Mini-Base"}
    notes = FamilyNotes(
        weights="softmax → top-k; ÷ sum if `norm_topk_prob`",
        beside="a shared expert",
        layout="all experts in one tensor, gate rows before up rows",
    )
    matrix_names = ()
