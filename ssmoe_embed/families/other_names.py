"""Families whose routers and experts have other names than the common ones, Mixtral's above all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.checkpoints import TensorSource, read_weight
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score, dense_model, each_expert


# Mixtral (arXiv 2401.04088).
class Mixtral(MoEFamily):
    """The common layout in memory; older names on disk."""

    models = {"mixtral": "Mixtral-8x7B, Mixtral-8x22B", "minimax": "MiniMax-Text-01, MiniMax-M1"}
    notes = FamilyNotes(
        weights="softmax → top-k ÷ sum",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
    )
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = each_expert("block_sparse_moe", "w1", "w3", "w2")


# Phi-3.5-MoE, its pruned children Phi-mini-MoE and Phi-tiny-MoE, and GRIN-MoE (arXiv 2409.12136).
class PhiMoe(Mixtral):
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
class MiniMaxM2(Mixtral):
    """Mixtral's names, sigmoid scores. The correction bias belongs to the block, chooses, and does not weigh."""

    models = {"minimax_m2": "MiniMax-M2"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`, as published in block-wise FP8",
        unsupported="shared experts and scores other than sigmoid, which transformers ignores",
    )
    score = Score.SIGMOID
    assumed = {"scoring_func": ("sigmoid", None), "shared_intermediate_size": (0, None)}


class MiniMaxM3(MiniMaxM2):
    """Names on disk as before; a shared expert, and the bias belongs to the router."""

    models = {"minimax_m3_vl": "MiniMax-M3", "minimax_m3_vl_text": "its text part"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `routed_scaling_factor`",
        beside="a shared expert; dense layers by `mlp_layer_types`; the vision model is not used",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
        unsupported="images; scores other than sigmoid",
    )
    assumed = {"scoring_func": ("sigmoid", None)}


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


# Jamba (arXiv 2403.19887).
class Jamba(MoEFamily):
    """Mamba and attention layers, every second one sparse."""

    models = {"jamba": "Jamba-v0.1, AI21-Jamba-1.5-Mini, AI21-Jamba-1.5-Large"}
    notes = FamilyNotes(
        weights="softmax → top-k, never ÷ sum",
        beside="dense layers by `expert_layer_period`, `expert_layer_offset`",
        unsupported="dense Jambas (`num_experts` 1)",
    )
    block_attribute = "feed_forward"
    router_attribute = "router"
    router_name = "layers.{layer}.feed_forward.router.weight"
    matrix_names = each_expert("feed_forward", "gate_proj", "up_proj", "down_proj")
    final_norm_attribute = "final_layernorm"
    layer_lists = ()  # they follow from the periods, and cannot be set

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        return None if config.num_experts > 1 else dense_model(config, "Jambas", "num_experts", "ai21labs/Jamba-v0.1")


# Nemotron 3 (https://research.nvidia.com/labs/nemotron/Nemotron-3/): Mamba, attention and MoE take turns as layers.
class NemotronH(MoEFamily):
    """DeepSeek-V3's routing over experts without a gate matrix, which Super and Ultra keep in a smaller, latent space.

    The router sees the hidden state and such an expert a projection of it, so its matrices are taken together with the
    projections around it: what they do is then told in hidden space, as the router's rows are.
    """

    models = {"nemotron_h": "Nemotron-3-Nano-30B-A3B, Nemotron-3-Super-120B-A12B"}
    notes = FamilyNotes(
        weights=(
            "sigmoid; top-k of score + correction bias within the best groups; weight = score, ÷ sum if `norm_topk_prob`, "
            "× `routed_scaling_factor`"
        ),
        beside="shared experts; layers without experts: Mamba, attention, dense",
        layout="`up_proj`, `down_proj` of each expert, in `mixer`; in latent space by `moe_latent_size`",
        unsupported="dense Nemotrons (no `moe` in `layers_block_type`)",
    )
    score = Score.SIGMOID
    block_attribute = "mixer"
    router_name = "layers.{layer}.mixer.gate.weight"
    matrix_names = each_expert("mixer", "up_proj", "down_proj")
    fused_names = ("up_proj", "down_proj")
    final_norm_attribute = "norm_f"
    layer_lists = ("layers_block_type",)

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        if model is not None or "moe" in config.layers_block_type:  # a live model may have been cut short
            return None
        return (
            "it is one of the dense Nemotrons, none of whose layers has experts; choose one with experts, such as "
            "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16."
        )

    def is_attention(self, layer: Any, part: str) -> bool:
        """See `MoEFamily.is_attention`; every layer is a single part of its own kind."""
        return part == self.block_attribute and layer.block_type not in ("moe", "mlp")

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`; up and downᵀ."""
        up, down = block.experts.up_proj[expert], block.experts.down_proj[expert].T  # [I,H], [H,I] → [I,H]
        if up.shape[1] == block.gate.weight.shape[1]:
            return up, down
        return _hidden_space(up, down, block.fc1_latent_proj.weight, block.fc2_latent_proj.weight)

    def stored_matrices(self, source: TensorSource, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`."""
        up, down = super().stored_matrices(source, prefix, layer, expert)
        latent = [f"{prefix}layers.{layer}.mixer.{name}_latent_proj.weight" for name in ("fc1", "fc2")]
        if latent[0] not in source or up.dtype == torch.float64:  # or in hidden space already
            return up, down
        return _hidden_space(up, down, *(read_weight(source, name) for name in latent))


def _hidden_space(
    up: torch.Tensor, down: torch.Tensor, into: torch.Tensor, back: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Matrices of latent size `D`, `[I,D]` both, with the projections `[D,H]` and `[H,D]` around them: `[I,H]` both."""
    into, back = torch.clone(into).double(), torch.clone(back).double()  # cloning unpacks what is kept in 4 bits
    return up.double() @ into, down.double() @ back.T
