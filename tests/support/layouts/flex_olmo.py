from typing import ClassVar

from layouts.base import EXPERTS, Layout


class FlexOlmo(Layout):
    model_type = "flex_olmo"
    config: ClassVar = {
        "num_experts": EXPERTS,
        "intermediate_size": 24,
        "norm_topk_prob": False,
        "num_experts_per_tok": 5,
    }
