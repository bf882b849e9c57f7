"""OLMoE (arXiv 2409.02060), and FlexOlmo (arXiv 2507.07024), whose experts were trained apart, on different data."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Olmoe(MoEFamily):
    """The most common layout as it is."""

    models = {"olmoe": "OLMoE-1B-7B", "flex_olmo": "FlexOlmo-7x7B-1T"}
    notes = FamilyNotes(weights="softmax → top-k; ÷ sum if `norm_topk_prob`")
