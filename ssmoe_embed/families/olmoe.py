"""OLMoE (arXiv 2409.02060)."""

from ssmoe_embed.families.base import MoEFamily


class Olmoe(MoEFamily):
    """The most common layout as it is."""

    model_types = ("olmoe",)
