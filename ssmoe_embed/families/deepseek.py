"""DeepSeek (arXiv 2401.06066, 2405.04434, 2412.19437), the many models that took over V3's MoE layer, and Kimi Linear.

DeepSeekMoE is `model_type: deepseek` and has no classes in transformers. DeepSeek-OCR 2 reads text with a decoder of the
same architecture: multi-head attention with rotary positions, and the MoE layer of DeepSeek-V2 with greedy choice and
without scaling.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2TextConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import (
    DeepseekOcr2TextModel,
    DeepseekOcr2TextPreTrainedModel,
)

from ssmoe_embed.checkpoints import Checkpoint
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, MoELayer, Score, each_expert, ignored_setting


class DeepseekV2(MoEFamily):
    """The common layout; the router works in float32 and may choose within groups of experts."""

    models = {"deepseek_v2": "DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2"}
    notes = FamilyNotes(
        weights="softmax → top-k, on request within the best groups → × `routed_scaling_factor`",
        beside="shared experts; the first `first_k_dense_replace` layers are dense",
        unsupported="`norm_topk_prob=true`, `moe_layer_freq` ≠ 1 and scores other than softmax, which transformers ignores",
    )
    assumed = {"norm_topk_prob": (False, None), "moe_layer_freq": (1, None), "scoring_func": ("softmax", None)}

    def expert_groups(self, config: Any) -> tuple[int, int]:
        """See `MoEFamily.expert_groups`; choosing greedily pays no heed to them."""
        return (1, 1) if config.topk_method == "greedy" else super().expert_groups(config)


class Deepseek(MoEFamily):
    """The common layout."""

    models = {"deepseek": "DeepSeekMoE-16B"}
    notes = FamilyNotes(
        weights="softmax → top-k",
        beside="shared experts; dense layers by `first_k_dense_replace`, `moe_layer_freq`",
        unsupported="`norm_topk_prob=true`, `rope_scaling`, no shared experts, scores other than softmax",
    )
    assumed = {"norm_topk_prob": (False, None), "scoring_func": ("softmax", None)}

    def register(self) -> None:
        """See `MoEFamily.register`; the experts of a checkpoint are joined as DeepSeek-V2's are."""
        AutoConfig.register("deepseek", DeepseekConfig, exist_ok=True)
        AutoModel.register(DeepseekConfig, DeepseekModel, exist_ok=True)
        AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
        mapping = get_checkpoint_conversion_mapping("deepseek_v2")
        register_checkpoint_conversion_mapping("deepseek", mapping, overwrite=True)

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        if not getattr(config, "n_shared_experts", None) or not getattr(config, "n_routed_experts", None):
            return (
                f"n_routed_experts={config.n_routed_experts!r} and n_shared_experts={config.n_shared_experts!r}, but the "
                "class that it is run with needs both. Choose a checkpoint with routed and shared experts."
            )
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope != "default":
            return f"rope_scaling of type {rope!r} has not been checked. Choose a checkpoint without rope_scaling."
        return super().refusal(config, model)


class DeepseekConfig(DeepseekOcr2TextConfig):
    """Its configuration, which names the dense layers by their number."""

    model_type = "deepseek"
    base_config_key = None
    mlp_layer_types: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        first, every = kwargs.get("first_k_dense_replace", 0), kwargs.get("moe_layer_freq", 1)
        if self.mlp_layer_types is None:
            self.mlp_layer_types = [
                "sparse" if layer >= first and layer % every == 0 else "dense"
                for layer in range(self.num_hidden_layers)
            ]
        self.topk_method, self.routed_scaling_factor = "greedy", 1.0
        super().__post_init__(**kwargs)


class DeepseekModel(DeepseekOcr2TextModel):
    """The decoder."""

    config_class = DeepseekConfig


class DeepseekForCausalLM(DeepseekOcr2TextPreTrainedModel, GenerationMixin):
    """The decoder with a language-model head."""

    config_class = DeepseekConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits of the next token, `[B,T,V]`.

        Args:
            input_ids: `[B,T]`.
            labels: `[B,T]`; with them the output has a loss.
            logits_to_keep: Positions from the end (0 for all), or their indices.
            **kwargs: For the decoder.
        """
        outputs = self.model(input_ids=input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # [B,T,H] → [B,T,V]
        loss = None if labels is None else self.loss_function(logits, labels, self.vocab_size)
        shared = {field.name: outputs.get(field.name) for field in fields(MoeCausalLMOutputWithPast)}
        return MoeCausalLMOutputWithPast(**shared | {"loss": loss, "logits": logits})


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

    assumed = dict.fromkeys(
        ("scoring_func", "score_function"),
        ("sigmoid", None, "noaux_tc"),  # dots.llm1 writes the name of its top-k there
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        sparse = [int(kind == "sparse") for kind in getattr(config, "mlp_layer_types", None) or ()]
        return ignored_setting(config, {"moe_layer_freq": (1, None, sparse)} | self.assumed)


class KimiLinear(DeepseekV3):
    """DeepSeek-V3's MoE layer under Mixtral's names, below linear and full attention."""

    models = {"kimi_linear": "Kimi-Linear-48B-A3B"}
    notes = replace(DeepseekV3.notes, layout="`w1`, `w3`, `w2` of each expert, in `block_sparse_moe`")
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = each_expert("block_sparse_moe", "w1", "w3", "w2")


class Mistral4(MoEFamily):
    """DeepSeek-V3's layer with softmax scores and without the correction bias."""

    models = {"mistral4": "Mistral-Small-4-119B"}
    notes = FamilyNotes(
        weights=(
            "softmax; top-k of score within the best groups; weight = score, ÷ sum if `norm_topk_prob`, "
            "× `routed_scaling_factor`"
        ),
        beside="shared experts; the first `first_k_dense_replace` layers are dense",
        layout="all experts in one tensor, gate rows before up rows",
        unsupported="images",
    )
    matrix_names = ()


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
    assumed = {"scoring_func": ("sqrtsoftplus",)}

    def layers(self, model: nn.Module) -> list[MoELayer]:
        """See `MoEFamily.layers`."""
        return [layer for layer in super().layers(model) if not hasattr(layer.router, "tid2eid")]

    def blocks_with_experts(self, model: nn.Module) -> list[MoELayer]:
        """See `MoEFamily.blocks_with_experts`."""
        return super().layers(model)

    def stored_layers(self, source: Checkpoint) -> dict[int, str]:
        """See `MoEFamily.stored_layers`."""
        return {layer: at for layer, at in super().stored_layers(source).items() if not _is_hashed(source, at, layer)}

    def stored_expert_layers(self, source: Checkpoint) -> set[int]:
        """See `MoEFamily.stored_expert_layers`."""
        prefixes = super().stored_layers(source)
        found = super().stored_expert_layers(source)
        return {layer for layer in found if not _is_hashed(source, prefixes.get(layer, ""), layer)}


def _is_hashed(source: Checkpoint, prefix: str, layer: int) -> bool:
    """Whether a layer keeps a table of experts by token id."""
    return any(f"{prefix}layers.{layer}.{block}.gate.tid2eid" in source for block in ("ffn", "mlp"))
