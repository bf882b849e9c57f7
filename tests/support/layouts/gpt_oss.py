from typing import ClassVar

from layouts.base import EXPERTS, Layout, top_k


class GptOss(Layout):
    """All experts in one tensor, gate and up columns taking turns; the router has a bias."""

    model_type = "gpt_oss"
    config: ClassVar = {
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "head_dim": 8,
        "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    gate = "router.weight"
    live_gate = "router"

    def router_bias(self, tensors, layer):
        return tensors[self.start(layer) + "router.bias"].double()

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[f"{self.start(layer)}experts.gate_up_proj"][expert].double()  # [H,2I]
        down = tensors[f"{self.start(layer)}experts.down_proj"][expert].double()  # [I,H]
        return gate_up[:, 0::2].T, gate_up[:, 1::2].T, down

    def route(self, p, learned, tensors, layer, config):
        return top_k(p, config.num_experts_per_tok, renormalise=True)  # the softmax of the chosen logits
