"""Nemotron 3 (https://research.nvidia.com/labs/nemotron/Nemotron-3/): Mamba, attention and MoE take turns as layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.checkpoints.float8 import read_weight
from ssmoe_embed.checkpoints.shards import TensorSource
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


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
    matrix_names = (
        "layers.{layer}.mixer.experts.{expert}.up_proj.weight",
        "layers.{layer}.mixer.experts.{expert}.down_proj.weight",
    )
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
