"""Tiny random MoE models in their real on-disk layouts, with a small tokenizer."""

from pathlib import Path

from layouts import LAYOUTS
from layouts.base import EXPERTS, HIDDEN, VOCABULARY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

__all__ = [
    "EXPERTS",
    "FAMILIES",
    "HIDDEN",
    "SHARDED",
    "TOP_C",
    "VOCABULARY",
    "make_model",
    "make_tokenizer",
    "save_model",
]

FAMILIES = ("olmoe", "qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss")
TOP_C = 5
SPECIAL = ("<pad>", "<bos>", "<eos>")

SHARDED = "qwen3_moe"
"""Its checkpoint is spread over several files."""

TRAINING_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not care at all.",
    "How do I undo the last commit without losing my changes in the working tree?",
    "This sentence means in one word: weather. The style of this sentence is plain.",
    "A list of numbers: 1, 2, 3, 10, 200 and 3000; their mean is what we want to know.",
    "She sold her old bicycle and bought a newer one from the shop around the corner.",
)


def make_tokenizer(*, bos=False, eos=False, side="right"):
    """A byte-level BPE tokenizer that takes any text, on request with tokens before and after each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXTS, trainer)
    if bos or eos:
        single = f"{'<bos> ' if bos else ''}$A{' <eos>' if eos else ''}"
        ids = [(token, SPECIAL.index(token)) for token in ("<bos>", "<eos>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side=side,
        model_max_length=2048,
    )


def make_model(family, seed=0, **changes):
    """A causal language model whose routers have clear preferences and whose norms and biases all matter."""
    return LAYOUTS[family].make(seed, **changes)


def save_model(folder, family, tokenizer=None, seed=0, **changes):
    """Write a model in its family's layout, and its tokenizer."""
    LAYOUTS[family].write(Path(folder), seed, **changes)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return Path(folder)
