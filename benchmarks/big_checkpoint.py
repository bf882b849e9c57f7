"""A checkpoint of OLMoE-7B's shape with random weights, written to disk a shard at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoTokenizer, OlmoeConfig

from ssmoe_embed.data import tiny_folder

LAYERS, EXPERTS, HIDDEN, INTERMEDIATE, TOP_K, HEADS, VOCABULARY = 16, 64, 2048, 1024, 8, 16, 50304
SCALE = 0.02
"""Standard deviation of the weights, `initializer_range` of the family."""


def write_checkpoint(folder: Path, layers: int = LAYERS) -> Path:
    """Write it under the names that the hub has, one layer a shard, with the bundled model's tokenizer.

    Args:
        folder: Where to.
        layers: Decoder layers; 16 of them are 13.8 GB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = OlmoeConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=0,
        dtype=torch.bfloat16,
    )
    config.architectures = ["OlmoeForCausalLM"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder() / "base").save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shards = [_ends(generator), *(_layer(index, generator) for index in range(layers))]
    where: dict[str, str] = {}
    for number, tensors in enumerate(tqdm(shards, desc="Writing shards", unit="shard"), start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        content = dict(tensors)
        save_file(content, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(content, name)
    index = json.dumps({"metadata": {}, "weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return folder


def _ends(generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """What comes before and after the layers."""
    yield "model.embed_tokens.weight", _random(generator, VOCABULARY, HIDDEN)
    yield "lm_head.weight", _random(generator, VOCABULARY, HIDDEN)
    yield "model.norm.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)


def _layer(index: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """One decoder layer."""
    prefix = f"model.layers.{index}"
    for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
        yield f"{prefix}.{name}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
    for name in ("q", "k", "v", "o"):
        yield f"{prefix}.self_attn.{name}_proj.weight", _random(generator, HIDDEN, HIDDEN)
    yield f"{prefix}.mlp.gate.weight", _random(generator, EXPERTS, HIDDEN)
    for expert in range(EXPERTS):
        for name, shape in (
            ("gate", (INTERMEDIATE, HIDDEN)),
            ("up", (INTERMEDIATE, HIDDEN)),
            ("down", (HIDDEN, INTERMEDIATE)),
        ):
            yield f"{prefix}.mlp.experts.{expert}.{name}_proj.weight", _random(generator, *shape)


def _random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=generator) * SCALE).bfloat16()
