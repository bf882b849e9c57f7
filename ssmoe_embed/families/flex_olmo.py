"""FlexOlmo (arXiv 2507.07024)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class FlexOlmo(MoEFamily):
    """The most common layout; its experts were trained apart, on different data."""

    model_types = ("flex_olmo",)
    notes = FamilyNotes(models="FlexOlmo-7x7B-1T", weights="softmax → top-k; ÷ sum if `norm_topk_prob`")
