"""DeepSeekMoE (arXiv 2401.06066), which is `model_type: deepseek` and has no classes in transformers.

DeepSeek-OCR 2 reads text with a decoder of the same architecture: multi-head attention with rotary positions, and the MoE
layer of DeepSeek-V2 with greedy choice and without scaling.
"""

from __future__ import annotations

from dataclasses import fields
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


def register() -> None:
    """Let the Auto classes find them, and let the experts of a checkpoint be joined as DeepSeek-V2's are."""
    AutoConfig.register("deepseek", DeepseekConfig, exist_ok=True)
    AutoModel.register(DeepseekConfig, DeepseekModel, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
    mapping = get_checkpoint_conversion_mapping("deepseek_v2")
    register_checkpoint_conversion_mapping("deepseek", mapping, overwrite=True)
