"""MiniMax-M2 (https://github.com/MiniMax-AI/MiniMax-M2)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score
from ssmoe_embed.families.deepseek import ignored_settings


class MiniMaxM2(MoEFamily):
    """Mixtral's names, sigmoid scores. The correction bias belongs to the block, chooses, and does not weigh."""

    models = {"minimax_m2": "MiniMax-M2"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`, as published in block-wise FP8",
        unsupported="shared experts and scores other than sigmoid, which transformers ignores",
    )
    score = Score.SIGMOID
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = (
        "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        return ignored_settings(config, {"scoring_func": ("sigmoid", None), "shared_intermediate_size": (0, None)})


class MiniMaxM3(MiniMaxM2):
    """Names on disk as before; a shared expert, and the bias belongs to the router."""

    models = {"minimax_m3_vl": "MiniMax-M3", "minimax_m3_vl_text": "its text part"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `routed_scaling_factor`",
        beside="a shared expert; dense layers by `mlp_layer_types`; the vision model is not used",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
        unsupported="images; scores other than sigmoid",
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        return ignored_settings(config, {"scoring_func": ("sigmoid", None)})
