"""OLMoE (arXiv 2409.02060)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Olmoe(MoEFamily):
    """The most common layout as it is."""

    model_types = ("olmoe",)
    notes = FamilyNotes(models="OLMoE-1B-7B", weights="softmax → top-k; ÷ sum if `norm_topk_prob`")
