"""DeepSeekMoE (arXiv 2401.06066), the first DeepSeek with experts."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily
from ssmoe_embed.families.deepseek_v2 import ignored_settings


class Deepseek(MoEFamily):
    """The common layout; the model's classes are in `missing/deepseek.py`, since transformers has none."""

    models = {"deepseek": "DeepSeekMoE-16B"}
    notes = FamilyNotes(
        weights="softmax → top-k",
        beside="shared experts; dense layers by `first_k_dense_replace`, `moe_layer_freq`",
        unsupported="`norm_topk_prob=true`, `rope_scaling`, no shared experts, scores other than softmax",
    )

    def register(self) -> None:
        """See `MoEFamily.register`."""
        from ssmoe_embed.families.missing.deepseek import register

        register()

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        if not getattr(config, "n_shared_experts", None) or not getattr(config, "n_routed_experts", None):
            return (
                f"n_routed_experts={config.n_routed_experts!r} and n_shared_experts={config.n_shared_experts!r}, but the "
                "class that it is run with needs both. Choose a checkpoint with routed and shared experts."
            )
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope != "default":
            return f"rope_scaling of type {rope!r} has not been checked. Choose a checkpoint without rope_scaling."
        return ignored_settings(config, {"norm_topk_prob": (False, None), "scoring_func": ("softmax", None)})
