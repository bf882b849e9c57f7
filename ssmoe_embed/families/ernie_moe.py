"""ERNIE 4.5 (https://github.com/PaddlePaddle/ERNIE)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Ernie45Moe(MoEFamily):
    """The common layout. The correction bias chooses but does not weigh, and is no part of the scores."""

    models = {"ernie4_5_moe": "ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B"}
    notes = FamilyNotes(
        weights="softmax; top-k of score + correction bias; weight = score ÷ sum",
        beside="shared experts; dense layers outside `moe_layer_start_index` … `moe_layer_end_index`",
        unsupported="the vision-language models (`ernie4_5_vl_moe`)",
    )
