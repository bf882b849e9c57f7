"""Qwen3-VL-MoE (https://huggingface.co/Qwen/Qwen3-VL-30B-A3B-Instruct); its text part."""

from __future__ import annotations

from typing import Any

import torch

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


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
