"""Families whose routers and experts have other attributes or names on disk than the base class's, Mixtral's above all."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ssmoe_embed.checkpoints import Checkpoint, read_weight
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score, dense_model, each_expert


# OLMoE (arXiv 2409.02060), and FlexOlmo (arXiv 2507.07024), whose experts were trained apart, on different data.
class Olmoe(MoEFamily):
    """The most common layout as it is."""

    models = {"olmoe": "OLMoE-1B-7B", "flex_olmo": "FlexOlmo-7x7B-1T"}
    notes = FamilyNotes(weights="softmax → top-k; ÷ sum if `norm_topk_prob`")


class Qwen3Moe(MoEFamily):
    """The common layout."""

    models = {"qwen3_moe": "Qwen3-30B-A3B, Qwen3-235B-A22B", "mellum": "Mellum2-12B-A2.5B"}
    notes = replace(Olmoe.notes, beside="dense layers by `mlp_only_layers`, `decoder_sparse_step` or `mlp_layer_types`")


class Qwen2Moe(MoEFamily):
    """The common layout. The shared expert serves every token, so no router chooses it and it has no row in W_EV."""

    models = {"qwen2_moe": "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", "qwen3_next": "Qwen3-Next-80B-A3B"}
    notes = replace(Olmoe.notes, beside=f"a shared expert with a sigmoid gate of its own; {Qwen3Moe.notes.beside}")


class Qwen35Moe(MoEFamily):
    """The text model alone or inside a vision-language model, whose vision part is neither loaded nor used."""

    models = {
        "qwen3_5_moe": "Qwen3.5-35B-A3B, Qwen3.5-122B-A10B, Qwen3.5-397B-A17B; Qwen3.6 and 3.8 use the same class",
        "qwen3_5_moe_text": "its text part",
    }
    notes = FamilyNotes(
        weights="softmax → top-k → ÷ sum",
        beside="a shared expert with a sigmoid gate of its own",
        layout="all experts in one tensor, gate rows before up rows; or `gate_proj`, `up_proj`, `down_proj` of each expert",
        unsupported="images and videos",
    )


class Qwen4Exp(Qwen35Moe):
    """Qwen3.5's layers below an embedding of n-grams."""

    models = {"qwen4_exp": "none published yet", "qwen4_exp_text": "its text part"}
    streams = True
    full_precision = (*MoEFamily.full_precision, "block_inject_weight", "input_mix_weight_down", "input_mix_weight_up")
    notes = replace(Qwen35Moe.notes, weights=Olmoe.notes.weights)


# ERNIE 4.5 (https://github.com/PaddlePaddle/ERNIE).
class Ernie45Moe(MoEFamily):
    """The common layout. The correction bias chooses but does not weigh, and is no part of the scores."""

    models = {"ernie4_5_moe": "ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B"}
    notes = FamilyNotes(
        weights="softmax; top-k of score + correction bias; weight = score ÷ sum",
        beside="shared experts; dense layers outside `moe_layer_start_index` … `moe_layer_end_index`",
        unsupported="the vision-language models (`ernie4_5_vl_moe`)",
    )


# Lara 4 Mini (https://huggingface.co/translated/Lara-4-Mini-Base).
class LaraMini(MoEFamily):
    """Linear attention, sliding windows and full attention take turns; saved under the names that it has in memory."""

    models = {"lara_mini": "Lara-4-Mini-Base"}
    notes = replace(Olmoe.notes, beside="a shared expert", layout="all experts in one tensor, gate rows before up rows")
    matrix_names = ()


# Command A+ (https://huggingface.co/CohereLabs/command-a-plus-05-2026).
class Cohere2Moe(MoEFamily):
    """The common layout beside attention; the configuration names the score function."""

    models = {"cohere2_moe": "command-a-plus-05-2026"}
    notes = FamilyNotes(
        score="softmax or sigmoid, by `expert_selection_fn`",
        weights="top-k of the logits → softmax of the chosen, or sigmoid, ÷ sum if `norm_topk_prob`",
        beside="shared experts, added or averaged; the first `first_k_dense_replace` layers are dense",
    )

    def variant(self, config: Any) -> MoEFamily:
        """See `MoEFamily.variant`."""
        made = copy(self)
        made.score = Score.parse(config.expert_selection_fn, "expert_selection_fn")
        return made


# Arcee's Trinity (https://huggingface.co/arcee-ai/Trinity-Mini).
class Afmoe(MoEFamily):
    """The common layout; the router's matrix sits in a linear layer of its own, and a bias helps to choose."""

    models = {"afmoe": "Trinity-Nano, Trinity-Mini"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + `expert_bias`; weight = score ÷ sum, × `route_scale`",
        beside="shared experts; the first `num_dense_layers` layers are dense",
    )
    score = Score.SIGMOID
    router_attribute = "router"
    router_matrix = "gate.weight"
    router_name = "layers.{layer}.mlp.router.gate.weight"


# Hunyuan-A13B and Hunyuan 3 (https://huggingface.co/tencent).
class HunyuanMoe(MoEFamily):
    """The router's matrix sits in a linear layer of its own."""

    models = {"hunyuan_v1_moe": "Hunyuan-A13B"}
    notes = FamilyNotes(
        weights="softmax → top-k → ÷ sum",
        beside="a shared expert",
        unsupported="dense layers, no or several shared experts, attention shared by layers: transformers cannot build them",
    )
    router_matrix = "wg.weight"
    router_name = "layers.{layer}.mlp.gate.wg.weight"

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """Refuse what the configuration asks for and the classes of transformers ignore; see `MoEFamily.refusal`."""
        built = {
            "moe_layer_num_skipped": 0,
            "num_shared_expert": 1,
            "use_mixed_mlp_moe": True,
            "use_cla": False,
            "moe_intermediate_size": config.intermediate_size,
        }
        for name, value in built.items():
            asked = getattr(config, name, None)
            if asked is not None and any(one != value for one in (asked if isinstance(asked, list) else [asked])):
                return (
                    f"{name} is {asked!r} where transformers builds {value!r} whatever it says, so the model would be "
                    "another one; choose one that it builds, such as tencent/Hunyuan-A13B-Instruct."
                )
        return None


class HyV3(MoEFamily):
    """The common layout in memory. The correction bias belongs to the block, chooses, and does not weigh."""

    models = {"hy_v3": "Hy3-preview"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `router_scaling_factor`",
        beside="shared experts; the first layer is dense",
    )
    score = Score.SIGMOID
    router_name = "layers.{layer}.mlp.router.gate.weight"


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

    def stored_matrices(self, source: Checkpoint, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
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
