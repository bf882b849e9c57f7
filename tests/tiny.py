"""Tiny random MoE models in their real on-disk layouts, with a small tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FAMILIES = ("olmoe", "qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss")
TOP_C = 5
HIDDEN = 32
EXPERTS = 8
VOCABULARY = 512
SPECIAL = ("<pad>", "<bos>", "<eos>")

SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
}
CONFIGS = {
    "olmoe": {"num_hidden_layers": 3, "num_experts": EXPERTS, "intermediate_size": 24, "norm_topk_prob": False},
    "qwen2_moe": {
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "num_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 28,
        "norm_topk_prob": False,
        "num_experts_per_tok": 3,
    },
    "qwen3_moe": {
        "num_experts": EXPERTS,
        "intermediate_size": 40,
        "moe_intermediate_size": 24,
        "head_dim": 8,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
    },
    "mixtral": {"num_local_experts": EXPERTS, "intermediate_size": 48},
    "gpt_oss": {
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "head_dim": 8,
        "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
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
    config = AutoConfig.for_model(family, **(SHARED | CONFIGS[family] | changes))
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith(("gate.weight", "router.weight")):
                parameter.copy_(0.3 * noise)
            elif "bias" in name or parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_((1.0 if "embed" in name else 0.15) * noise)
    return model.eval()


def save_model(folder, family, tokenizer=None, seed=0, **changes):
    """Write a model and its tokenizer as `save_pretrained` does."""
    sharding = {"max_shard_size": "60KB"} if family == SHARDED else {}
    make_model(family, seed, **changes).save_pretrained(folder, **sharding)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return Path(folder)
