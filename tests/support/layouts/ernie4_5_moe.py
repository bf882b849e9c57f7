from typing import ClassVar

from layouts.base import EXPERTS, Layout, biased_top_k


class Ernie45Moe(Layout):
    """Softmax scores and a bias that only chooses, kept outside the router on disk; dense layers at both ends."""

    model_type = "ernie4_5_moe"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 4,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
        "moe_layer_interval": 1,
        "moe_num_experts": EXPERTS,
        "moe_num_shared_experts": 2,
        "moe_k": 3,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
    }
    sparse = (1, 2)

    def make_config(self, **changes):
        return super().make_config(num_experts_per_tok=self.config["moe_k"], **changes)

    def route(self, p, learned, tensors, layer, config):
        bias = tensors[self.start(layer) + "moe_statics.e_score_correction_bias"].double().flatten()
        index = biased_top_k(p, bias, config.moe_k)
        weights = p.gather(1, index)
        return weights / weights.sum(dim=-1, keepdim=True), index
