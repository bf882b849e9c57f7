"""Phi-3.5-MoE, its pruned children Phi-mini-MoE and Phi-tiny-MoE, and GRIN-MoE (arXiv 2409.12136)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class PhiMoe(MoEFamily):
    """Two experts a token, each weighed by a softmax over the logits that come close to the best.

    How close is judged relative to the logits' size, so the mix has to keep their offset, which it does.
    """

    models = {"phimoe": "Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE, GRIN-MoE"}
    notes = FamilyNotes(
        weights="sparsemixer: the two largest logits, each ÷ the sum over those near it; they need not add up to 1",
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
        unsupported="`num_experts_per_tok` ≠ 2",
    )
    router_attribute = "router"
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = (
        "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        if config.num_experts_per_tok == 2:
            return None
        return (
            f"num_experts_per_tok={config.num_experts_per_tok}, but its sparsemixer always chooses two experts. "
            "Set num_experts_per_tok to 2 in config.json."
        )
