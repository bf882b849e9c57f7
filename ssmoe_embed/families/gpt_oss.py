"""GPT-OSS (arXiv 2508.10925)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ssmoe_embed.checkpoints.mxfp4 import unpack_mxfp4
from ssmoe_embed.checkpoints.shards import TensorSource
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
    matrix_names = ()
    packed_names = ("layers.{layer}.mlp.experts.gate_up_proj_blocks", "layers.{layer}.mlp.experts.down_proj_blocks")

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate_up, down = block.experts.gate_up_proj[expert], block.experts.down_proj[expert]  # [H,2I], [I,H]
        return gate_up[:, ::2].T, gate_up[:, 1::2].T, down

    def stored_matrices(self, source: TensorSource, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`; in MXFP4, rows and columns are swapped."""
        blocks = [prefix + name.format(layer=layer) for name in self.packed_names]
        if blocks[0] not in source:
            return super().stored_matrices(source, prefix, layer, expert)
        gate_up, down = (_unpacked(source, name, expert) for name in blocks)
        experts = SimpleNamespace(gate_up_proj={expert: gate_up}, down_proj={expert: down})
        return self.expert_matrices(SimpleNamespace(experts=experts), expert)

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


def _unpacked(source: TensorSource, blocks: str, expert: int) -> torch.Tensor:
    """One expert's matrix `[in,out]`."""
    scales = f"{blocks.removesuffix('_blocks')}_scales"
    return unpack_mxfp4(source.read_row(blocks, expert), source.read_row(scales, expert)).T
