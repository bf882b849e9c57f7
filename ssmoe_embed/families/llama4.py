"""Llama 4 (https://ai.meta.com/blog/llama-4-multimodal-intelligence/); its text part."""

from __future__ import annotations

from typing import Any

import torch

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


class Llama4(MoEFamily):
    """All experts of a layer in one tensor; an expert's score scales what enters it, not what comes out."""

    models = {"llama4": "Llama-4-Scout, Llama-4-Maverick", "llama4_text": "its text part"}
    notes = FamilyNotes(
        weights="top-k of the logits → sigmoid, applied to the expert's input",
        beside="a shared expert; dense layers by `interleave_moe_layer_step`; the vision model is not used",
        layout="all experts in one tensor, gate columns before up columns; or `gate_proj`, `up_proj`, `down_proj` of each",
        unsupported="images",
    )
    score = Score.SIGMOID
    block_attribute = "feed_forward"
    router_attribute = "router"
    router_name = "layers.{layer}.feed_forward.router.weight"
    matrix_names = (
        "layers.{layer}.feed_forward.experts.{expert}.gate_proj.weight",
        "layers.{layer}.feed_forward.experts.{expert}.up_proj.weight",
        "layers.{layer}.feed_forward.experts.{expert}.down_proj.weight",
    )
    layer_lists = ("layer_types", "no_rope_layers")

    def shorten(self, config: Any, layers: int) -> None:
        """See `MoEFamily.shorten`."""
        super().shorten(config, layers)
        text = self.text_config(config)
        text.moe_layers = [layer for layer in text.moe_layers if layer < layers]

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate, up = block.experts.gate_up_proj[expert].T.chunk(2, dim=0)  # [H,2I] → 2 × [I,H]
        return gate, up, block.experts.down_proj[expert]  # [I,H]
