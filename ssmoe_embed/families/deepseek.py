"""DeepSeek (arXiv 2401.06066, 2405.04434, 2412.19437), the many models that took over V3's MoE layer, and Kimi Linear."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssmoe_embed.checkpoints.shards import TensorSource
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, MoELayer, Score, each_expert


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


class Deepseek(MoEFamily):
    """The common layout; the model's classes are in `deepseek_v1.py`, since transformers has none."""

    models = {"deepseek": "DeepSeekMoE-16B"}
    notes = FamilyNotes(
        weights="softmax → top-k",
        beside="shared experts; dense layers by `first_k_dense_replace`, `moe_layer_freq`",
        unsupported="`norm_topk_prob=true`, `rope_scaling`, no shared experts, scores other than softmax",
    )

    def register(self) -> None:
        """See `MoEFamily.register`."""
        from ssmoe_embed.families.deepseek_v1 import register

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


class DeepseekV3(MoEFamily):
    """The common layout, sigmoid scores. The correction bias chooses but does not weigh, and is no part of the scores."""

    models = {
        "deepseek_v3": "DeepSeek-V3, DeepSeek-R1, Moonlight-16B-A3B",
        "deepseek_v32": "DeepSeek-V3.2",
        "glm4_moe": "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",
        "glm4v_moe": "GLM-4.5V, GLM-4.6V, without images",
        "glm4v_moe_text": "its text part",
        "glm4_moe_lite": "GLM-4.7-Flash",
        "glm_moe_dsa": "GLM-5",
        "bailing_hybrid": "Ling-3.0-Flash",
        "dots1": "dots.llm1",
        "exaone_moe": "K-EXAONE-236B-A23B",
        "mimo_v2_flash": "MiMo-V2-Flash",
        "sarvam_mla": "sarvam-105b",
        "sarvam_moe": "sarvam-30b",
        "solar_open": "Solar-Open-100B",
    }
    notes = FamilyNotes(
        weights=(
            "sigmoid; top-k of score + correction bias within the best groups; weight = score, ÷ sum if `norm_topk_prob`, "
            "× `routed_scaling_factor`"
        ),
        beside="shared experts; the first layers are dense; layers of multi-token prediction are left out",
        layout="`gate_proj`, `up_proj`, `down_proj` of each expert; DeepSeek's own are published in block-wise FP8",
        unsupported="`moe_layer_freq` and scores other than those that transformers computes",
    )
    score = Score.SIGMOID

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        sparse = [int(kind == "sparse") for kind in getattr(config, "mlp_layer_types", None) or ()]
        scores = ("sigmoid", None, "noaux_tc")  # dots.llm1 writes the name of its top-k there
        kept = {"moe_layer_freq": (1, None, sparse)} | dict.fromkeys(("scoring_func", "score_function"), scores)
        return ignored_settings(config, kept)


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
    matrix_names = each_expert("ffn", "w1", "w3", "w2")

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


class KimiLinear(DeepseekV3):
    """DeepSeek-V3's MoE layer under Mixtral's names, below linear and full attention."""

    models = {"kimi_linear": "Kimi-Linear-48B-A3B"}
    notes = FamilyNotes(
        weights=DeepseekV3.notes.weights,
        beside=DeepseekV3.notes.beside,
        layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`",
        unsupported=DeepseekV3.notes.unsupported,
    )
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = each_expert("block_sparse_moe", "w1", "w3", "w2")
