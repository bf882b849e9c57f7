"""MiniMax-M2 (https://github.com/MiniMax-AI/MiniMax-M2)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score
from ssmoe_embed.families.deepseek_v2 import ignored_settings


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
