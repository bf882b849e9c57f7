"""Qwen3-Next (https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Qwen3Next(MoEFamily):
    """The common layout below linear and full attention. The shared expert serves every token and has no row in W_EV."""

    model_types = ("qwen3_next",)
    notes = FamilyNotes(
        models="Qwen3-Next-80B-A3B",
        weights="softmax → top-k; ÷ sum if `norm_topk_prob`",
        beside="a shared expert with a sigmoid gate of its own; dense layers by `mlp_only_layers`, `decoder_sparse_step`",
    )
