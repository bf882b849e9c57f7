from typing import ClassVar

from layouts.base import EXPERTS, Layout, biased_top_k


class MiniMaxM2(Layout):
    """Mixtral's names, sigmoid scores, and a bias of the block that only chooses."""

    model_type = "minimax_m2"
    config: ClassVar = {
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "num_experts_per_tok": 3,
        "head_dim": 8,
        "rotary_dim": 4,
    }
    block = "block_sparse_moe"
    projections = ("w1", "w3", "w2")
    score = "sigmoid"

    def route(self, p, learned, tensors, layer, config):
        index = biased_top_k(
            p, tensors[self.start(layer) + "e_score_correction_bias"].double(), config.num_experts_per_tok
        )
        weights = p.gather(1, index)
        return weights / weights.sum(dim=-1, keepdim=True), index
