from typing import ClassVar

from layouts.base import EXPERTS, Layout, top_k


class Jamba(Layout):
    """Mamba and attention take turns, dense and sparse layers too."""

    model_type = "jamba"
    config: ClassVar = {
        "num_hidden_layers": 4,
        "num_experts": EXPERTS,
        "intermediate_size": 24,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    }
    sparse = (1, 3)
    block = "feed_forward"
    gate = "router.weight"
    live_block = "feed_forward"
    live_gate = "router"

    def route(self, p, learned, tensors, layer, config):
        return top_k(p, config.num_experts_per_tok, renormalise=False)
