"""Qwen3.5-MoE (https://huggingface.co/Qwen/Qwen3.5-35B-A3B)."""

from __future__ import annotations

from dataclasses import replace

from ssmoe_embed.families.base import FamilyNotes, MoEFamily


class Qwen35Moe(MoEFamily):
    """The text model alone or inside a vision-language model, whose vision part is neither loaded nor used."""

    models = {
        "qwen3_5_moe": "Qwen3.5-35B-A3B, Qwen3.5-122B-A10B, Qwen3.5-397B-A17B; Qwen3.6 and 3.8 use the same class",
        "qwen3_5_moe_text": "its text part",
    }
    notes = FamilyNotes(
        weights="softmax → top-k → ÷ sum",
        beside="a shared expert with a sigmoid gate of its own",
        layout="all experts in one tensor, gate rows before up rows; or `gate_proj`, `up_proj`, `down_proj` of each expert",
        unsupported="images and videos",
    )


class Qwen4Exp(Qwen35Moe):
    """Qwen3.5's layers below an embedding of n-grams."""

    models = {"qwen4_exp": "none published yet", "qwen4_exp_text": "its text part"}
    streams = True
    full_precision = (*Qwen35Moe.full_precision, "block_inject_weight", "input_mix_weight_down", "input_mix_weight_up")
    notes = replace(Qwen35Moe.notes, weights="softmax → top-k; ÷ sum if `norm_topk_prob`")
