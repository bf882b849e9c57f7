from typing import ClassVar

from safetensors.torch import load_file, save_file

from layouts.base import EXPERTS, Layout, biased_top_k


class DeepseekV3(Layout):
    """Sigmoid scores, a bias that only chooses, groups, and a layer of multi-token prediction after the last."""

    model_type = "deepseek_v3"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    }
    sparse = (1, 2)
    score = "sigmoid"
    bias = "gate.e_score_correction_bias"
    """The correction bias's name in the MoE block."""

    def save(self, model, folder):
        model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.2.")}
        extra = {name.replace("layers.2.", "layers.3."): tensor.flip(0).contiguous() for name, tensor in last.items()}
        save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})

    def correction_bias(self, tensors, layer):
        return tensors[self.start(layer) + self.bias].double()

    def route(self, p, learned, tensors, layer, config):
        bias = self.correction_bias(tensors, layer)
        index = biased_top_k(p, bias, config.num_experts_per_tok, groups=config.n_group, kept_groups=config.topk_group)
        weights = p.gather(1, index)
        if config.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights * config.routed_scaling_factor, index
