"""DeepSeek-V3 and -R1 (arXiv 2412.19437), and the families that took over its MoE layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score
from ssmoe_embed.families.deepseek_v2 import ignored_settings

_WEIGHTS = (
    "sigmoid; top-k of score + correction bias within the best groups; weight = score, ÷ sum if `norm_topk_prob`, "
    "× `routed_scaling_factor`"
)
_BESIDE = "shared experts; the first `first_k_dense_replace` layers are dense"


class DeepseekV3(MoEFamily):
    """The common layout, sigmoid scores. The correction bias chooses but does not weigh, and is no part of the scores."""

    model_types = ("deepseek_v3",)
    notes = FamilyNotes(
        models="DeepSeek-V3, DeepSeek-R1, Moonlight-16B-A3B",
        weights=_WEIGHTS,
        beside=f"{_BESIDE}; layers of multi-token prediction are left out",
        layout="`gate_proj`, `up_proj`, `down_proj` of each expert, as published in block-wise FP8",
        unsupported="`moe_layer_freq` ≠ 1, `scoring_func` other than sigmoid, which transformers ignores",
    )
    score = Score.SIGMOID
    float32_router = True

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        return ignored_settings(config, {"moe_layer_freq": (1, None), "scoring_func": ("sigmoid", None)})


class Glm4Moe(MoEFamily):
    """DeepSeek-V3's MoE layer."""

    model_types = ("glm4_moe",)
    notes = FamilyNotes(
        models="GLM-4.5, GLM-4.5-Air, GLM-4.6",
        weights=_WEIGHTS,
        beside=f"{_BESIDE}; layers of multi-token prediction are left out",
    )
    score = Score.SIGMOID
    float32_router = True


class Dots1(MoEFamily):
    """DeepSeek-V3's MoE layer."""

    model_types = ("dots1",)
    notes = FamilyNotes(models="dots.llm1", weights=_WEIGHTS, beside=_BESIDE)
    score = Score.SIGMOID
    float32_router = True
