"""Granite 3 MoE, and its successors with a shared expert, Mamba layers (Granite 4) or sliding windows."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class GraniteMoe(MoEFamily):
    """Router and experts have names of their own on disk."""

    models = {
        "granitemoe": "granite-3.1-1b-a400m, granite-3.1-3b-a800m",
        "granitemoeshared": "moe-7b-1b-active-shared-experts",
        "granitemoehybrid": "granite-4.0-h-tiny, granite-4.0-h-small",
    }
    notes = FamilyNotes(
        weights="top-k of the logits → softmax of the chosen",
        beside="a shared expert in `granitemoeshared` and `granitemoehybrid`",
        layout="all experts in one tensor, gate rows before up rows",
        unsupported="dense Granite 4 (`num_local_experts` 0)",
    )
    block_attribute = "block_sparse_moe"
    router_attribute = "router"
    router_name = "layers.{layer}.block_sparse_moe.router.layer.weight"
    matrix_names = ()
    packed_names = (
        "layers.{layer}.block_sparse_moe.input_linear.weight",
        "layers.{layer}.block_sparse_moe.output_linear.weight",
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        if config.num_local_experts:
            return None
        return (
            f"it is one of the dense Granites (num_local_experts={config.num_local_experts}), which have no experts to "
            "route to; choose one with experts, such as ibm-granite/granite-4.0-h-tiny."
        )


class GraniteMoeSwa(MoEFamily):
    """Saved under the names that it has in memory."""

    models = {"granitemoe_swa": "none published yet"}
    notes = FamilyNotes(
        weights="top-k of the logits → softmax of the chosen",
        beside="a shared expert where `shared_intermediate_size` > 0",
        layout="all experts in one tensor, gate rows before up rows",
    )
    block_attribute = "block_sparse_moe"
    router_attribute = "router"
    router_name = "layers.{layer}.block_sparse_moe.router.weight"
    matrix_names = ()
    layer_lists = ("layer_types", "layer_rope_theta")
