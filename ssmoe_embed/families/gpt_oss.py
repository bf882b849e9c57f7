"""GPT-OSS (arXiv 2508.10925)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.checkpoints.mxfp4 import unpack_mxfp4
from ssmoe_embed.checkpoints.source import TensorSource
from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class GptOss(MoEFamily):
    """All experts of a layer in one tensor, gate and up columns interleaved; the router has a bias."""

    models = {"gpt_oss": "gpt-oss-20b, gpt-oss-120b"}
    notes = FamilyNotes(
        weights="top-k of the logits, with the router's bias → softmax of the chosen",
        layout="all experts in one tensor, gate and up columns interleaved; in MXFP4 on the hub",
        four_bit="yes, also as the checkpoint's MXFP4",
        from_disk="16 bits, MXFP4",
        unsupported="MXFP4 kernels on a GPU, which bypass the router (it is unpacked instead)",
    )
    router_attribute = "router"
    router_name = "layers.{layer}.mlp.router.weight"
    matrix_names = ("layers.{layer}.mlp.experts.gate_up_proj", "layers.{layer}.mlp.experts.down_proj")
    packed_names = ("layers.{layer}.mlp.experts.gate_up_proj_blocks", "layers.{layer}.mlp.experts.down_proj_blocks")

    def expert_matrices(self, experts: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        return _hidden_space(experts.gate_up_proj[expert], experts.down_proj[expert])

    def stored_matrices(self, source: TensorSource, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`."""
        gate_up, down = (prefix + name.format(layer=layer) for name in self.matrix_names)
        return _hidden_space(_stored_expert(source, gate_up, expert), _stored_expert(source, down, expert))

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del config
        if model is None or not any(type(layer.experts).__name__.startswith("Mxfp4") for layer in self.layers(model)):
            return None
        return (
            "its MXFP4 kernels compute the routing themselves and never run the router, so it can be neither read nor "
            "re-routed. Load it with quantization_config=Mxfp4Config(dequantize=True), or through ssmoe_embed with "
            "load_in_4bit=True, which keeps the MXFP4 weights packed and runs the router."
        )


def _stored_expert(source: TensorSource, name: str, expert: int) -> torch.Tensor:
    """One expert's matrix `[in,out]`, also from a checkpoint that has it packed, with rows and columns swapped."""
    if name in source:
        return source.read_row(name, expert)
    return unpack_mxfp4(source.read_row(f"{name}_blocks", expert), source.read_row(f"{name}_scales", expert)).T


def _hidden_space(gate_up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One expert's `[H,2I]` with alternating gate and up columns, and `[I,H]`, as gate, up, downᵀ `[I,H]`."""
    return gate_up[:, ::2].T, gate_up[:, 1::2].T, down
