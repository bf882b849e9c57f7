from typing import ClassVar

from layouts.base import EXPERTS, Layout, top_k


class HunyuanMoe(Layout):
    """The router is a linear layer inside the gate; a shared expert serves every token."""

    model_type = "hunyuan_v1_moe"
    shared = True
    config: ClassVar = {
        "num_experts": EXPERTS,
        "intermediate_size": 24,
        "head_dim": 8,
        "num_experts_per_tok": [3, 2],  # as `moe_topk` on disk
        "tie_word_embeddings": True,
    }
    gate = "gate.wg.weight"

    def route(self, p, learned, tensors, layer, config):
        return top_k(p, config.num_experts_per_tok[layer], renormalise=True)
