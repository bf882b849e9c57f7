from typing import ClassVar

from layouts.base import EXPERTS
from layouts.hy_v3 import HyV3


class Afmoe(HyV3):
    """Trinity: the same rule; sliding windows and full attention take turns, and each block has a norm behind it."""

    model_type = "afmoe"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "num_dense_layers": 1,
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 3,
        "route_scale": 1.7,
        "head_dim": 8,
        "sliding_window": 16,
        "global_attn_every_n_layers": 2,
    }
    live_gate = "router"
    scaling = "route_scale"
