"""The shape of ssmoe/tiny: an OLMoE language model of 12.4 million parameters."""

from __future__ import annotations

from typing import Any

from tokenizer import EOS_ID, MAX_LENGTH, PAD_ID, VOCABULARY


def make_config(**changes: Any) -> Any:
    """Return the configuration; keyword arguments override single values."""
    from transformers import OlmoeConfig

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 112,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": 24,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
        "bos_token_id": EOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "router_aux_loss_coef": 0.0,
    }
    return OlmoeConfig(**(settings | changes))


def make_model(**changes: Any) -> Any:
    """Return an `OlmoeForCausalLM` with the library's random weights, in float32."""
    from transformers import OlmoeForCausalLM

    return OlmoeForCausalLM(make_config(**changes)).float()
