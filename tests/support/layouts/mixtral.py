from typing import ClassVar

from layouts.base import EXPERTS, Layout, top_k


class Mixtral(Layout):
    model_type = "mixtral"
    config: ClassVar = {"num_local_experts": EXPERTS, "intermediate_size": 48}
    block = "block_sparse_moe"
    projections = ("w1", "w3", "w2")

    def route(self, p, learned, tensors, layer, config):
        return top_k(p, config.num_experts_per_tok, renormalise=True)
