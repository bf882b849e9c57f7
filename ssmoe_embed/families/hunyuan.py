"""Hunyuan-A13B and Hunyuan 3 (https://huggingface.co/tencent)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


class HunyuanMoe(MoEFamily):
    """The router's matrix sits in a linear layer of its own."""

    models = {"hunyuan_v1_moe": "Hunyuan-A13B"}
    notes = FamilyNotes(
        weights="softmax → top-k → ÷ sum",
        beside="a shared expert",
        unsupported="dense layers, no or several shared experts, attention shared by layers: transformers cannot build them",
    )
    router_name = "layers.{layer}.mlp.gate.wg.weight"

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """Refuse what the configuration asks for and the classes of transformers ignore; see `MoEFamily.refusal`."""
        del model
        built = {
            "moe_layer_num_skipped": 0,
            "num_shared_expert": 1,
            "use_mixed_mlp_moe": True,
            "use_cla": False,
            "moe_intermediate_size": config.intermediate_size,
        }
        for name, value in built.items():
            asked = getattr(config, name, None)
            if asked is not None and any(one != value for one in (asked if isinstance(asked, list) else [asked])):
                return (
                    f"{name} is {asked!r} where transformers builds {value!r} whatever it says, so the model would be "
                    "another one; choose one that it builds, such as tencent/Hunyuan-A13B-Instruct."
                )
        return None

    def router_weight(self, router: Any) -> torch.Tensor:
        """See `MoEFamily.router_weight`."""
        weight: torch.Tensor = router.wg.weight
        return weight


class HyV3(MoEFamily):
    """The common layout in memory. The correction bias belongs to the block, chooses, and does not weigh."""

    models = {"hy_v3": "Hy3-preview"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `router_scaling_factor`",
        beside="shared experts; the first layer is dense",
    )
    score = Score.SIGMOID
    router_name = "layers.{layer}.mlp.router.gate.weight"
