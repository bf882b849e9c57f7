"""Gemma 4 with experts (https://ai.google.dev/gemma/docs/core/model_card_4); its text part."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Gemma4(MoEFamily):
    """Router and experts stand beside a dense MLP in the decoder layer, each with a norm of its own.

    The router multiplies `z = rms(x) · s`, with `s = scale/√H`, and the experts `u = rms(x) · w`: one vector in two
    coordinates. The experts' matrices are given in the router's: what reads `u` is multiplied by `w/s`, what writes is
    divided by it.
    """

    models = {"gemma4": "gemma-4-26B-A4B", "gemma4_text": "its text part"}
    notes = FamilyNotes(
        weights="softmax → top-k ÷ sum, × `per_expert_scale`",
        beside="a dense MLP in every layer",
        layout="all experts in one tensor, gate rows before up rows, in the decoder layer itself",
        unsupported="dense Gemma 4 (`enable_moe_block` false); images, sound and video",
    )
    block_attribute = ""
    router_attribute = "router"
    router_name = "layers.{layer}.router.proj.weight"
    matrix_names = ()

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        if config.enable_moe_block:
            return None
        return (
            "it is one of the dense Gemmas (enable_moe_block=False), which have no experts to route to; choose "
            "google/gemma-4-26B-A4B."
        )

    def is_attention(self, layer: nn.Module, part: str) -> bool:
        """See `MoEFamily.is_attention`."""
        del layer
        return part == "self_attn"

    def router_weight(self, router: Any) -> torch.Tensor:
        """See `MoEFamily.router_weight`."""
        weight: torch.Tensor = router.proj.weight
        return weight

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate, up, down = (matrix.double() for matrix in super().expert_matrices(block, expert))
        scale = block.router.scale.double() * gate.shape[1] ** -0.5  # [H]
        weight = block.pre_feedforward_layernorm_2.weight.double()  # [H]
        reads, writes = _ratio(weight, scale), _ratio(scale, weight)
        return gate * reads, up * reads, down * writes


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Their ratio, 0 where one of them never sees that dimension."""
    return torch.where(below == 0, torch.zeros_like(above), above / below)
