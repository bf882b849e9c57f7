"""Hunyuan 3 (https://huggingface.co/tencent/Hy3-preview)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


class HyV3(MoEFamily):
    """The common layout in memory. The correction bias belongs to the block, chooses, and does not weigh."""

    models = {"hy_v3": "Hy3-preview"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `router_scaling_factor`",
        beside="shared experts; the first layer is dense",
    )
    score = Score.SIGMOID
    router_name = "layers.{layer}.mlp.router.gate.weight"
