import json
from typing import ClassVar

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from layouts.base import EXPERTS, HIDDEN, VOCABULARY, Layout, drawn
from ssmoe_embed.families import register_families


class Deepseek(Layout):
    """DeepSeekMoE-16B's config.json, with smaller numbers, and its tensors by their published names.

    The checkpoint is written here, tensor by tensor, since there is no model class to write it.
    """

    model_type = "deepseek"
    shared = True
    config: ClassVar = {
        "architectures": ["DeepseekForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_deepseek.DeepseekConfig",
            "AutoModel": "modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
        },
        "aux_loss_alpha": 0.001,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 40,
        "max_position_embeddings": 4096,
        "model_type": "deepseek",
        "moe_intermediate_size": 16,
        "moe_layer_freq": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.33.1",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
    sparse = (1, 2)

    def shapes(self):
        """The checkpoint's tensors and their shapes."""
        size, wide = self.config["moe_intermediate_size"], self.config["intermediate_size"]
        shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
        shapes["model.norm.weight"] = (HIDDEN,)
        for layer in range(3):
            start = f"model.layers.{layer}."
            shapes |= {f"{start}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
            shapes |= {f"{start}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
            mlps = {"mlp": wide}
            if layer in self.sparse:
                shapes[f"{start}mlp.gate.weight"] = (EXPERTS, HIDDEN)
                mlps = {"mlp.shared_experts": 2 * size} | {f"mlp.experts.{expert}": size for expert in range(EXPERTS)}
            for name, inner in mlps.items():
                shapes |= {f"{start}{name}.{part}_proj.weight": (inner, HIDDEN) for part in ("gate", "up")}
                shapes[f"{start}{name}.down_proj.weight"] = (HIDDEN, inner)
        return shapes

    def make_config(self, **changes):
        register_families()
        return AutoConfig.for_model(**(self.config | changes))

    def write(self, folder, seed=0, **changes):
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: drawn(name, shape, generator) for name, shape in sorted(self.shapes().items())}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config | changes), encoding="utf-8")
