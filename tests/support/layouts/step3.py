from typing import ClassVar

from transformers import AutoConfig, AutoModelForImageTextToText

from layouts.base import EXPERTS, SHARED, Layout, biased_top_k
from layouts.glm4v_moe import Glm4vMoe


class Step3(Glm4vMoe):
    """Gate, up and down of all experts in one tensor each; the block scales what its experts add up to."""

    model_type = "step3p7"
    prefix = "model."
    block = "moe"
    auto = AutoModelForImageTextToText
    config: ClassVar = {
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "share_expert_dim": 16,
        "intermediate_size": 40,
        "head_dim": 8,
        "num_nextn_predict_layers": 0,
        "moe_router_scaling_factor": 2.0,
    }
    vision: ClassVar = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    save = Layout.save

    def make_config(self, **changes):
        text = SHARED | self.config | changes
        return AutoConfig.for_model(self.model_type, text_config=text, vision_config=self.vision)

    def matrices(self, tensors, layer, expert):
        gate, up, down = (tensors[f"{self.start(layer)}{name}.weight"][expert].double() for name in self.projections)
        return gate, up, down.T

    def route(self, p, learned, tensors, layer, config):
        index = biased_top_k(p, tensors[self.start(layer) + "router_bias"].double(), config.num_experts_per_tok)
        weights = p.gather(1, index)
        return weights / weights.sum(dim=-1, keepdim=True), index

    def expert(self, block, x, gate, up, down):
        return self.config["moe_router_scaling_factor"] * super().expert(block, x, gate, up, down)

    def routed(self, block, x, weights, index):
        return self.config["moe_router_scaling_factor"] * block.experts(x, index, weights)
