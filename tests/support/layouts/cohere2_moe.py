from typing import ClassVar

from layouts.base import EXPERTS, Layout, top_k


class Cohere2Moe(Layout):
    """Attention and experts side by side; the sigmoid of the chosen logits, with a shared expert averaged in."""

    model_type = "cohere2_moe"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "intermediate_size": 16,
        "prefix_dense_intermediate_size": 40,
        "num_experts_per_tok": 3,
        "expert_selection_fn": "sigmoid",
        "norm_topk_prob": True,
        "head_dim": 8,
        "sliding_window": 16,
    }
    sparse = (1, 2)
    score = "sigmoid"

    def route(self, p, learned, tensors, layer, config):
        normed = config.norm_topk_prob or config.expert_selection_fn == "softmax"
        return top_k(p, config.num_experts_per_tok, renormalise=normed)

    def output(self, block, x):
        """As their sum."""
        return 2 * block(x)
