"""Families whose experts are stored under Mixtral's names, `w1`, `w3`, `w2`."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score, each_expert
from ssmoe_embed.families.deepseek import ignored_settings


# Mixtral (arXiv 2401.04088) and Mistral 4.
class Mixtral(MoEFamily):
    """The common layout in memory; older names on disk."""

    models = {"mixtral": "Mixtral-8x7B, Mixtral-8x22B", "minimax": "MiniMax-Text-01, MiniMax-M1"}
    notes = FamilyNotes(
        weights="softmax → top-k ÷ sum",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
    )
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = each_expert("block_sparse_moe", "w1", "w3", "w2")


class Mistral4(MoEFamily):
    """DeepSeek-V3's layer with softmax scores and without the correction bias."""

    models = {"mistral4": "Mistral-Small-4-119B"}
    notes = FamilyNotes(
        weights=(
            "softmax; top-k of score within the best groups; weight = score, ÷ sum if `norm_topk_prob`, "
            "× `routed_scaling_factor`"
        ),
        beside="shared experts; the first `first_k_dense_replace` layers are dense",
        layout="all experts in one tensor, gate rows before up rows",
        unsupported="images",
    )
    matrix_names = ()


# Phi-3.5-MoE, its pruned children Phi-mini-MoE and Phi-tiny-MoE, and GRIN-MoE (arXiv 2409.12136).
class PhiMoe(MoEFamily):
    """Two experts a token, each weighed by a softmax over the logits that come close to the best.

    How close is judged relative to the logits' size, so the mix has to keep their offset, which it does.
    """

    models = {"phimoe": "Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE, GRIN-MoE"}
    notes = FamilyNotes(
        weights="sparsemixer: the two largest logits, each ÷ the sum over those near it; they need not add up to 1",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
        unsupported="`num_experts_per_tok` ≠ 2",
    )
    router_attribute = "router"
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = each_expert("block_sparse_moe", "w1", "w3", "w2")

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        if config.num_experts_per_tok == 2:
            return None
        return (
            f"num_experts_per_tok={config.num_experts_per_tok}, but its sparsemixer always chooses two experts. "
            "Set num_experts_per_tok to 2 in config.json."
        )


# MiniMax-M2 (https://github.com/MiniMax-AI/MiniMax-M2).
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
    matrix_names = each_expert("block_sparse_moe", "w1", "w3", "w2")

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


# LFM2-MoE (https://huggingface.co/LiquidAI/LFM2-8B-A1B).
class Lfm2Moe(MoEFamily):
    """Short convolutions and attention. A bias helps to choose the experts, but does not weigh them."""

    models = {"lfm2_moe": "LFM2-8B-A1B"}
    notes = FamilyNotes(
        weights="sigmoid; chosen by score + `expert_bias`; weight = score, ÷ sum if `norm_topk_prob`, × scaling factor",
        beside="the first `num_dense_layers` layers are dense",
        layout="`w1`, `w3`, `w2` of each expert",
    )
    score = Score.SIGMOID
    block_attribute = "feed_forward"
    router_name = "layers.{layer}.feed_forward.gate.weight"
    final_norm_attribute = "embedding_norm"
    matrix_names = each_expert("feed_forward", "w1", "w3", "w2")
