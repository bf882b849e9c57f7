"""The shape of the model, its tokenizer, and its image processor."""

from __future__ import annotations

import json
from typing import Any

from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

SEED = 20261127
WIDTH = 192
IMAGE, PATCH = 32, 8
VOCABULARY = 8_192
POSITIONS = 77
"""CLIP's; no text that was trained on has more than 40 tokens."""
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def dense_model(tokenizer: Any) -> CLIPModel:
    """A small dense CLIP, with heads of 64 as every CLIP of OpenAI's."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": WIDTH // 64,
        "projection_dim": WIDTH,
    }
    text = tower | {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"num_hidden_layers": 4, "intermediate_size": 320, "image_size": IMAGE, "patch_size": PATCH}
    # PyTorch's fused attention takes three times as long as this one in 16 bits on a CPU, at these lengths.
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, attn_implementation="eager")
    return CLIPModel(config)


def make_tokenizer(texts: list[str], size: int = VOCABULARY) -> CLIPTokenizer:
    """CLIP's kind of tokenizer, with pieces learned from the texts; the two special tokens are its last two.

    Without texts the pieces are single bytes.
    """
    from tokenizers import pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    start = CLIPTokenizer().backend_tokenizer
    start.model = BPE(end_of_word_suffix="</w>", continuing_subword_prefix="")
    trainer = BpeTrainer(
        vocab_size=size - len(SPECIAL) - len(letters),
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
    )
    start.train_from_iterator(texts, trainer)
    state: dict[str, Any] = json.loads(start.to_str())["model"]
    vocabulary: dict[str, int] = dict(state["vocab"])
    for letter in letters:  # a byte that ends a word, so nothing is unknown
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    for special in SPECIAL:
        vocabulary[special] = len(vocabulary)
    merges = [tuple(pair) for pair in state["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def make_processor() -> CLIPImageProcessorPil:
    """CLIP's image processor at this model's size."""
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
