from typing import ClassVar

from layouts.base import EXPERTS
from layouts.mixtral import Mixtral


class MiniMax(Mixtral):
    """Mixtral's experts below lightning attention and full attention."""

    model_type = "minimax"
    config: ClassVar = {
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "head_dim": 8,
        "block_size": 16,
    }
