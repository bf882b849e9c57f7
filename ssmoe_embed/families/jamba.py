"""Jamba (arXiv 2403.19887)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


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
    matrix_names = (
        "layers.{layer}.feed_forward.experts.{expert}.gate_proj.weight",
        "layers.{layer}.feed_forward.experts.{expert}.up_proj.weight",
        "layers.{layer}.feed_forward.experts.{expert}.down_proj.weight",
    )
    final_norm_attribute = "final_layernorm"
    layer_lists = ()  # they follow from the periods, and cannot be set

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        if config.num_experts > 1:
            return None
        return (
            f"it is one of the dense Jambas (num_experts={config.num_experts}), which have no experts to route to; choose "
            "one with experts, such as ai21labs/Jamba-v0.1."
        )
