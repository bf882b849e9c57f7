"""DeepSeek-V3 and -R1 (arXiv 2412.19437), and the many models that took over its MoE layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score
from ssmoe_embed.families.deepseek_v2 import ignored_settings


class DeepseekV3(MoEFamily):
    """The common layout, sigmoid scores. The correction bias chooses but does not weigh, and is no part of the scores."""

    models = {
        "deepseek_v3": "DeepSeek-V3, DeepSeek-R1, Moonlight-16B-A3B",
        "deepseek_v32": "DeepSeek-V3.2",
        "glm4_moe": "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",
        "glm4v_moe": "GLM-4.5V, GLM-4.6V, without images",
        "glm4v_moe_text": "its text part",
        "glm4_moe_lite": "GLM-4.7-Flash",
        "glm_moe_dsa": "GLM-5",
        "bailing_hybrid": "Ling-3.0-Flash",
        "dots1": "dots.llm1",
        "exaone_moe": "K-EXAONE-236B-A23B",
        "mimo_v2_flash": "MiMo-V2-Flash",
        "sarvam_mla": "sarvam-105b",
        "sarvam_moe": "sarvam-30b",
        "solar_open": "Solar-Open-100B",
    }
    notes = FamilyNotes(
        weights=(
            "sigmoid; top-k of score + correction bias within the best groups; weight = score, ÷ sum if `norm_topk_prob`, "
            "× `routed_scaling_factor`"
        ),
        beside="shared experts; the first layers are dense; layers of multi-token prediction are left out",
        layout="`gate_proj`, `up_proj`, `down_proj` of each expert; DeepSeek's own are published in block-wise FP8",
        unsupported="`moe_layer_freq` and scores other than those that transformers computes",
    )
    score = Score.SIGMOID

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        sparse = [int(kind == "sparse") for kind in getattr(config, "mlp_layer_types", None) or ()]
        scores = ("sigmoid", None, "noaux_tc")  # dots.llm1 writes the name of its top-k there
        kept = {"moe_layer_freq": (1, None, sparse)} | dict.fromkeys(("scoring_func", "score_function"), scores)
        return ignored_settings(config, kept)
