"""Families in the common layout or close to it: attributes, a router's matrix one level deeper, a score by configuration."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from torch import nn

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


# OLMoE (arXiv 2409.02060), and FlexOlmo (arXiv 2507.07024), whose experts were trained apart, on different data.
class Olmoe(MoEFamily):
    """The most common layout as it is."""

    models = {"olmoe": "OLMoE-1B-7B", "flex_olmo": "FlexOlmo-7x7B-1T"}
    notes = FamilyNotes(weights="softmax → top-k; ÷ sum if `norm_topk_prob`")


class Qwen3Moe(MoEFamily):
    """The common layout."""

    models = {"qwen3_moe": "Qwen3-30B-A3B, Qwen3-235B-A22B", "mellum": "Mellum2-12B-A2.5B"}
    notes = replace(Olmoe.notes, beside="dense layers by `mlp_only_layers`, `decoder_sparse_step` or `mlp_layer_types`")


class Qwen2Moe(MoEFamily):
    """The common layout. The shared expert serves every token, so no router chooses it and it has no row in W_EV."""

    models = {"qwen2_moe": "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", "qwen3_next": "Qwen3-Next-80B-A3B"}
    notes = replace(Olmoe.notes, beside=f"a shared expert with a sigmoid gate of its own; {Qwen3Moe.notes.beside}")


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
    full_precision = (*MoEFamily.full_precision, "block_inject_weight", "input_mix_weight_down", "input_mix_weight_up")
    notes = replace(Qwen35Moe.notes, weights=Olmoe.notes.weights)


# ERNIE 4.5 (https://github.com/PaddlePaddle/ERNIE).
class Ernie45Moe(MoEFamily):
    """The common layout. The correction bias chooses but does not weigh, and is no part of the scores."""

    models = {"ernie4_5_moe": "ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B"}
    notes = FamilyNotes(
        weights="softmax; top-k of score + correction bias; weight = score ÷ sum",
        beside="shared experts; dense layers outside `moe_layer_start_index` … `moe_layer_end_index`",
        unsupported="the vision-language models (`ernie4_5_vl_moe`)",
    )


# Lara 4 Mini (https://huggingface.co/translated/Lara-4-Mini-Base).
class LaraMini(MoEFamily):
    """Linear attention, sliding windows and full attention take turns; saved under the names that it has in memory."""

    models = {"lara_mini": "Lara-4-Mini-Base"}
    notes = replace(Olmoe.notes, beside="a shared expert", layout="all experts in one tensor, gate rows before up rows")
    matrix_names = ()


# Command A+ (https://huggingface.co/CohereLabs/command-a-plus-05-2026).
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


# Arcee's Trinity (https://huggingface.co/arcee-ai/Trinity-Mini).
class Afmoe(MoEFamily):
    """The common layout; the router's matrix sits in a linear layer of its own, and a bias helps to choose."""

    models = {"afmoe": "Trinity-Nano, Trinity-Mini"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + `expert_bias`; weight = score ÷ sum, × `route_scale`",
        beside="shared experts; the first `num_dense_layers` layers are dense",
    )
    score = Score.SIGMOID
    router_attribute = "router"
    router_matrix = "gate.weight"
    router_name = "layers.{layer}.mlp.router.gate.weight"


# Hunyuan-A13B and Hunyuan 3 (https://huggingface.co/tencent).
class HunyuanMoe(MoEFamily):
    """The router's matrix sits in a linear layer of its own."""

    models = {"hunyuan_v1_moe": "Hunyuan-A13B"}
    notes = FamilyNotes(
        weights="softmax → top-k → ÷ sum",
        beside="a shared expert",
        unsupported="dense layers, no or several shared experts, attention shared by layers: transformers cannot build them",
    )
    router_matrix = "wg.weight"
    router_name = "layers.{layer}.mlp.gate.wg.weight"

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """Refuse what the configuration asks for and the classes of transformers ignore; see `MoEFamily.refusal`."""
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


class HyV3(MoEFamily):
    """The common layout in memory. The correction bias belongs to the block, chooses, and does not weigh."""

    models = {"hy_v3": "Hy3-preview"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `router_scaling_factor`",
        beside="shared experts; the first layer is dense",
    )
    score = Score.SIGMOID
    router_name = "layers.{layer}.mlp.router.gate.weight"
