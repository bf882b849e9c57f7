import json
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file

from layouts.base import EXPERTS, Layout, biased_top_k


class DeepseekV4(Layout):
    """The square root of softplus as score; the first layer chooses by token id; streams in place of one residual."""

    model_type = "deepseek_v4"
    shared = True
    streams = True
    prefix = ""
    block = "ffn"
    projections = ("w1", "w3", "w2")
    score = "sqrtsoftplus"
    sparse = (1, 2)
    config: ClassVar = {
        "num_hidden_layers": 3,
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "q_lora_rank": 24,
        "partial_rotary_factor": 0.5,
        "o_groups": 2,
        "o_lora_rank": 8,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 64,
        "sliding_window": 16,
        "hc_mult": 2,
        "routed_scaling_factor": 1.5,
    }

    def make(self, seed=0, **changes):
        model = super().make(seed, **changes)
        generator = torch.Generator().manual_seed(seed)
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):
                rows = [torch.randperm(EXPERTS, generator=generator)[: table.shape[1]] for _ in table]
                table.copy_(torch.stack(rows))
        return model

    def save(self, model, folder):
        """As published, without the prefix with which transformers 5.24 writes what it cannot read again."""
        model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        renamed = {"embed_tokens.": "embed.", "hc_head.hc_": "hc_head_"}
        published = {}
        for name, tensor in tensors.items():
            own = name.removeprefix("model.")
            for old, new in renamed.items():
                own = own.replace(old, new)
            published[own] = tensor
        save_file(published, folder / "model.safetensors", {"format": "pt"})

    def repair(self, folder):
        """transformers 5.24 takes `model.norm` for an attention's own norm when it loads what it saved."""
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text(encoding="utf-8"))
        file = folder / content["weight_map"].pop("model.norm.weight")
        tensors = load_file(file)
        save_file(tensors | {"norm.weight": tensors.pop("model.norm.weight")}, file, {"format": "pt"})
        content["weight_map"]["norm.weight"] = file.name
        index.write_text(json.dumps(content), encoding="utf-8")

    def scores(self, logits):
        return torch.nn.functional.softplus(logits).sqrt()

    def route(self, p, learned, tensors, layer, config):
        index = biased_top_k(p, tensors[self.start(layer) + "gate.bias"].double(), config.num_experts_per_tok)
        weights = p.gather(1, index)
        return weights / weights.sum(dim=-1, keepdim=True) * config.routed_scaling_factor, index
