from typing import ClassVar

from transformers import AutoConfig, AutoModelForImageTextToText

from layouts.base import EXPERTS, SHARED, Layout, randomised, top_k


class Qwen35MoeText(Layout):
    """Linear and full attention, a shared expert; each expert has tensors of its own on disk."""

    model_type = "qwen3_5_moe_text"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "num_experts": EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 28,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts_per_tok": 3,
    }
    sparse = (0, 1, 2)

    def route(self, p, learned, tensors, layer, config):
        return top_k(p, config.num_experts_per_tok, renormalise=True)


class Qwen35Moe(Qwen35MoeText):
    """Inside a vision-language model; all experts in one tensor, as published."""

    model_type = "qwen3_5_moe"
    prefix = "model.language_model."
    vision: ClassVar = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": SHARED["hidden_size"],
        "num_position_embeddings": 16,
        "patch_size": 4,
    }

    def make_config(self, **changes):
        text = SHARED | self.config | changes
        return AutoConfig.for_model(self.model_type, text_config=text, vision_config=self.vision)

    def make(self, seed=0, **changes):
        return randomised(AutoModelForImageTextToText.from_config(self.make_config(**changes)), seed)

    def save(self, model, folder):
        model.save_pretrained(folder, save_original_format=False)

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[f"{self.start(layer)}experts.gate_up_proj"][expert].double()  # [2I,H]
        down = tensors[f"{self.start(layer)}experts.down_proj"][expert].double()  # [H,I]
        size = down.shape[1]
        return gate_up[:size], gate_up[size:], down.T


class Qwen4ExpText(Qwen35MoeText):
    """Below an embedding of n-grams, with streams in place of one residual."""

    model_type = "qwen4_exp_text"
    streams = True
    config: ClassVar = Qwen35MoeText.config | {
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1],
        "ple_embed_dim": 16,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "heads_per_ngram": 2,
        "split_ngram_parts": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    }
