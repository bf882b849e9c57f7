"""A divided dense Qwen2 model as a Qwen2-MoE checkpoint, which transformers loads as any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from split_dense.layers import Layer
from ssmoe_embed.common.files import atomic_folder

_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
)
"""What both configurations have."""


def configuration(dense: Qwen2Config, layers: Sequence[Layer], k: int) -> Qwen2MoeConfig:
    """The configuration of a divided model.

    Raises:
        ValueError: The dense model uses sliding windows.
    """
    if dense.use_sliding_window:
        raise ValueError("A dense model with sliding windows is not divided; its layer types are not carried over.")
    same = {name: getattr(dense, name) for name in _SAME if hasattr(dense, name)}
    return Qwen2MoeConfig(
        **same,
        num_experts=len(layers[0].experts),
        num_experts_per_tok=k,
        moe_intermediate_size=layers[0].experts.shape[1],
        shared_expert_intermediate_size=len(layers[0].shared),
        norm_topk_prob=True,
        decoder_sparse_step=1,
        qkv_bias=True,
        use_sliding_window=False,
    )


def sparse_model(dense: Qwen2ForCausalLM, layers: Sequence[Layer], k: int, *, flat: bool = False) -> PreTrainedModel:
    """The divided model, for saving: its weights are real, what is not saved of it is not.

    Args:
        dense: The dense model.
        layers: Its division.
        k: Experts per token.
        flat: Routers that give all experts the same weight, and no scales: with `k` all experts, the dense model itself.
    """
    weights = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    for at, (block, layer) in enumerate(zip(dense.model.layers, layers, strict=True)):
        weights |= {
            f"model.layers.{at}.mlp.{name}": one for name, one in _block(block.mlp, layer, k, flat=flat).items()
        }
    with torch.device("meta"):
        model = Qwen2MoeForCausalLM(configuration(dense.config, layers, k))
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model


def _block(mlp: Any, layer: Layer, k: int, *, flat: bool) -> dict[str, Tensor]:
    """Weights of one sparse block.

    The k weights of a token are 1 together, so what leaves an expert is multiplied by k; a gate of zero halves what
    leaves the shared expert, which is doubled.
    """
    gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    scale = torch.ones(len(layer.experts)) if flat else layer.router.scale
    routed = torch.stack(
        [down[:, neurons].float() * (k * one) for neurons, one in zip(layer.experts, scale, strict=True)]
    )
    weight = torch.zeros_like(layer.router.weight) if flat else layer.router.weight
    return {
        "gate.weight": weight.to(gate.dtype),
        "experts.gate_up_proj": torch.stack([torch.cat([gate[one], up[one]]) for one in layer.experts]),
        "experts.down_proj": routed.to(gate.dtype),
        "shared_expert.gate_proj.weight": gate[layer.shared],
        "shared_expert.up_proj.weight": up[layer.shared],
        "shared_expert.down_proj.weight": (down[:, layer.shared] * 2),
        "shared_expert_gate.weight": torch.zeros(1, gate.shape[1], dtype=gate.dtype),
    }


def write(dense_folder: Path, layers: Sequence[Layer], k: int, output: Path, *, flat: bool = False) -> None:
    """Write a checkpoint with the dense model's tokenizer.

    Args:
        dense_folder: The dense model's checkpoint.
        layers: Its division.
        k: Experts per token.
        output: A folder that is not there yet.
        flat: See `sparse_model`.
    """
    dense = Qwen2ForCausalLM.from_pretrained(dense_folder, dtype="auto")
    with torch.no_grad(), atomic_folder(output) as folder:
        sparse_model(dense, layers, k, flat=flat).save_pretrained(folder)
        AutoTokenizer.from_pretrained(dense_folder).save_pretrained(folder)
