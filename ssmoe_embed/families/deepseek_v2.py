"""DeepSeek-V2 (arXiv 2405.04434)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class DeepseekV2(MoEFamily):
    """The common layout; the router works in float32 and may choose within groups of experts."""

    models = {"deepseek_v2": "DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2"}
    notes = FamilyNotes(
        weights="softmax → top-k, on request within the best groups → × `routed_scaling_factor`",
        beside="shared experts; the first `first_k_dense_replace` layers are dense",
        unsupported="`norm_topk_prob=true`, `moe_layer_freq` ≠ 1 and scores other than softmax, which transformers ignores",
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        return ignored_settings(
            config, {"norm_topk_prob": (False, None), "moe_layer_freq": (1, None), "scoring_func": ("softmax", None)}
        )

    def expert_groups(self, config: Any) -> tuple[int, int]:
        """See `MoEFamily.expert_groups`; choosing greedily pays no heed to them."""
        return (1, 1) if config.topk_method == "greedy" else super().expert_groups(config)


def ignored_settings(config: Any, kept: dict[str, tuple[Any, ...]]) -> str | None:
    """A refusal if a setting that transformers does not implement has another value than the one it assumes.

    Args:
        config: The model's configuration.
        kept: The values that mean what transformers does, by the setting's name; a missing setting is one of them.
    """
    for name, values in kept.items():
        value = getattr(config, name, values[0])
        if value not in values:
            return (
                f"its config.json says {name}={value!r}, which transformers does not implement (it runs the model as with "
                f"{name}={values[0]!r}), so its vectors would be those of another model. Choose a checkpoint of this "
                "family without that setting."
            )
    return None
