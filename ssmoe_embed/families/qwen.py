"""Qwen1.5-MoE to Qwen3.5-MoE, with the models that also see, and Mellum 2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ssmoe_embed.families.base import FamilyNotes, MoEFamily

_DENSE = "dense layers by `mlp_only_layers`, `decoder_sparse_step` or `mlp_layer_types`"


class Qwen2Moe(MoEFamily):
    """The common layout. The shared expert serves every token, so no router chooses it and it has no row in W_EV."""

    models = {"qwen2_moe": "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", "qwen3_next": "Qwen3-Next-80B-A3B"}
    notes = FamilyNotes(
        weights="softmax → top-k; ÷ sum if `norm_topk_prob`",
        beside=f"a shared expert with a sigmoid gate of its own; {_DENSE}",
    )


class Qwen3Moe(MoEFamily):
    """The common layout."""

    models = {"qwen3_moe": "Qwen3-30B-A3B, Qwen3-235B-A22B", "mellum": "Mellum2-12B-A2.5B"}
    notes = FamilyNotes(weights="softmax → top-k; ÷ sum if `norm_topk_prob`", beside=_DENSE)


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
    full_precision = (*Qwen35Moe.full_precision, "block_inject_weight", "input_mix_weight_down", "input_mix_weight_up")
    notes = replace(Qwen35Moe.notes, weights="softmax → top-k; ÷ sum if `norm_topk_prob`")


class Qwen3VLMoe(MoEFamily):
    """All experts of a layer in two tensors, which checkpoints keep transposed: what is what shows in their shapes."""

    models = {
        "qwen3_vl_moe": "Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B",
        "qwen3_vl_moe_text": "its text part",
    }
    notes = FamilyNotes(
        weights="softmax → top-k → ÷ sum",
        beside="dense layers by `mlp_only_layers`, `decoder_sparse_step`; the vision model is not used",
        layout="all experts in one tensor, gate columns before up columns, or transposed",
        unsupported="images and videos",
    )
    matrix_names = ()

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate_up, down = block.experts.gate_up_proj[expert], block.experts.down_proj[expert]
        if gate_up.shape[1] != down.shape[0]:  # [H,2I] and [I,H], not [2I,H] and [H,I]
            gate_up, down = gate_up.T, down.T
        gate, up = gate_up.chunk(2, dim=0)
        return gate, up, down.T
