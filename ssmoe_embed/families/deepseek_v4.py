"""DeepSeek-V4 (https://huggingface.co/deepseek-ai)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.checkpoints.shards import TensorSource
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, MoELayer, Score
from ssmoe_embed.families.deepseek_v2 import ignored_settings


class DeepseekV4(MoEFamily):
    """The first layers choose experts by token id: they have no choice to mix or to read, and are left as they are."""

    models = {"deepseek_v4": "DeepSeek-V4-Flash, DeepSeek-V4-Pro"}
    notes = FamilyNotes(
        weights="√softplus; top-k of score + correction bias; weight = score ÷ sum, × `routed_scaling_factor`",
        beside="a shared expert; the first layers choose by token id (`hash_moe`) and are left out",
        layout="`w1`, `w3`, `w2` of each expert, in `ffn`",
        unsupported="experts in FP4 from disk; scores other than √softplus",
    )
    streams = True
    score = Score.SQRTSOFTPLUS
    router_name = "layers.{layer}.ffn.gate.weight"
    matrix_names = (
        "layers.{layer}.ffn.experts.{expert}.w1.weight",
        "layers.{layer}.ffn.experts.{expert}.w3.weight",
        "layers.{layer}.ffn.experts.{expert}.w2.weight",
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        return ignored_settings(config, {"scoring_func": ("sqrtsoftplus",)})

    def layers(self, model: nn.Module) -> list[MoELayer]:
        """See `MoEFamily.layers`."""
        return [layer for layer in super().layers(model) if not hasattr(layer.router, "tid2eid")]

    def blocks_with_experts(self, model: nn.Module) -> list[MoELayer]:
        """See `MoEFamily.blocks_with_experts`."""
        return super().layers(model)

    def stored_layers(self, source: TensorSource) -> dict[int, str]:
        """See `MoEFamily.stored_layers`."""
        return {layer: at for layer, at in super().stored_layers(source).items() if not _is_hashed(source, at, layer)}

    def stored_expert_layers(self, source: TensorSource) -> set[int]:
        """See `MoEFamily.stored_expert_layers`."""
        prefixes = super().stored_layers(source)
        found = super().stored_expert_layers(source)
        return {layer for layer in found if not _is_hashed(source, prefixes.get(layer, ""), layer)}


def _is_hashed(source: TensorSource, prefix: str, layer: int) -> bool:
    """Whether a layer keeps a table of experts by token id."""
    return any(f"{prefix}layers.{layer}.{block}.gate.tid2eid" in source for block in ("ffn", "mlp"))
