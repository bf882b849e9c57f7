"""Arcee's Trinity (https://huggingface.co/arcee-ai/Trinity-Mini)."""

from __future__ import annotations

from typing import Any

import torch

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


class Afmoe(MoEFamily):
    """The common layout; the router's matrix sits in a linear layer of its own, and a bias helps to choose."""

    models = {"afmoe": "Trinity-Nano, Trinity-Mini"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + `expert_bias`; weight = score ÷ sum, × `route_scale`",
        beside="shared experts; the first `num_dense_layers` layers are dense",
    )
    score = Score.SIGMOID
    router_attribute = "router"
    router_name = "layers.{layer}.mlp.router.gate.weight"

    def router_weight(self, router: Any) -> torch.Tensor:
        """See `MoEFamily.router_weight`."""
        weight: torch.Tensor = router.gate.weight
        return weight
