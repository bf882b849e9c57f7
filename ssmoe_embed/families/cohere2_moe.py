"""Command A+ (https://huggingface.co/CohereLabs/command-a-plus-05-2026)."""

from __future__ import annotations

from copy import copy
from typing import Any

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


class Cohere2Moe(MoEFamily):
    """The common layout beside attention; the configuration names the score function."""

    models = {"cohere2_moe": "command-a-plus-05-2026"}
    notes = FamilyNotes(
        score="softmax or sigmoid, by `expert_selection_fn`",
        weights="top-k of the logits → softmax of the chosen, or sigmoid, ÷ sum if `norm_topk_prob`",
        beside="shared experts, added or averaged; the first `first_k_dense_replace` layers are dense",
    )

    def variant(self, config: Any) -> MoEFamily:
        """See `MoEFamily.variant`."""
        made = copy(self)
        made.score = Score.parse(config.expert_selection_fn, "expert_selection_fn")
        return made
