"""GPT-OSS (arXiv 2508.10925)."""

from __future__ import annotations

from typing import Any

import torch

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, TensorSource


class GptOss(MoEFamily):
    """All experts of a layer in one tensor, gate and up columns interleaved; the router has a bias."""

    model_types = ("gpt_oss",)
    notes = FamilyNotes(
        models="gpt-oss-20b, gpt-oss-120b",
        weights="top-k of the logits, with the router's bias → softmax of the chosen",
        layout="all experts in one tensor, gate and up columns interleaved",
    )
    router_attribute = "router"
    router_name = "layers.{layer}.mlp.router.weight"
    matrix_names = ("layers.{layer}.mlp.experts.gate_up_proj", "layers.{layer}.mlp.experts.down_proj")

    def expert_matrices(self, experts: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        return _hidden_space(experts.gate_up_proj[expert], experts.down_proj[expert])

    def stored_matrices(self, source: TensorSource, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`."""
        gate_up, down = (prefix + name.format(layer=layer) for name in self.matrix_names)
        if gate_up not in source and f"{gate_up}_blocks" in source:
            raise ValueError(
                f"{gate_up}_blocks is packed in MXFP4, which is not read from disk yet. Load the model with "
                "quantization_config=Mxfp4Config(dequantize=True) and use SpectralRouters.from_model(model)."
            )
        return _hidden_space(source.read_row(gate_up, expert), source.read_row(down, expert))


def _hidden_space(gate_up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One expert's `[H,2I]` with alternating gate and up columns, and `[I,H]`, as gate, up, downᵀ `[I,H]`."""
    return gate_up[:, ::2].T, gate_up[:, 1::2].T, down
