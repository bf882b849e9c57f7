"""Families in which Mamba layers stand beside attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.checkpoints.formats import read_weight
from ssmoe_embed.checkpoints.shards import TensorSource
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score, each_expert


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
        del model
        if config.num_experts > 1:
            return None
        return (
            f"it is one of the dense Jambas (num_experts={config.num_experts}), which have no experts to route to; choose "
            "one with experts, such as ai21labs/Jamba-v0.1."
        )


# Granite 3 MoE, and its successors with a shared expert, Mamba layers (Granite 4) or sliding windows.
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
