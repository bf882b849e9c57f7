from typing import ClassVar

from layouts.base import EXPERTS, Layout


class Olmoe(Layout):
    model_type = "olmoe"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "num_experts": EXPERTS,
        "intermediate_size": 24,
        "norm_topk_prob": False,
    }
    sparse = (0, 1, 2)
