from typing import ClassVar

import torch
from transformers import AutoConfig

from layouts.base import EXPERTS, HIDDEN, SHARED, Layout, top_k


class Gemma4Text(Layout):
    """Router and experts beside a dense MLP; the router norms and scales its input, the experts see it through a norm."""

    model_type = "gemma4_text"
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "enable_moe_block": True,
        "num_experts": EXPERTS,
        "top_k_experts": 3,
        "moe_intermediate_size": 16,
        "intermediate_size": 40,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 16,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "tie_word_embeddings": True,
    }
    sparse = (0, 1, 2)
    block = ""
    gate = "router.proj.weight"
    live_block = ""
    live_gate = "router"

    def scales(self, tensors, layer):
        """What the router and the experts multiply the normed state by, `[H]` each."""
        scale = tensors[self.start(layer) + "router.scale"].double() * HIDDEN**-0.5
        return scale, tensors[self.start(layer) + "pre_feedforward_layernorm_2.weight"].double()

    def router_input(self, x, tensors, layer):
        return x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * self.scales(tensors, layer)[0]

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[self.start(layer) + "experts.gate_up_proj"][expert].double()  # [2I,H]
        down = tensors[self.start(layer) + "experts.down_proj"][expert].double()  # [H,I]
        scale, weight = self.scales(tensors, layer)
        size = down.shape[1]
        return gate_up[:size] * (weight / scale), gate_up[size:] * (weight / scale), down.T * (scale / weight)

    def route(self, p, learned, tensors, layer, config):
        weights, index = top_k(p, config.top_k_experts, renormalise=True)
        return weights * tensors[self.start(layer) + "router.per_expert_scale"].double()[index], index

    def output(self, block, x):
        """Of the experts alone: the layer adds attention and a dense MLP, which know no router."""
        x = x.flatten(0, 1)
        return self.routed(block, x, *self.decided(block.router(x)))

    def routed(self, block, x, weights, index):
        return block.experts(block.pre_feedforward_layernorm_2(x), index, weights)

    def expert(self, block, x, gate, up, down):
        scale = block.router.scale * HIDDEN**-0.5
        z = block.router.norm(x) * scale
        written = torch.nn.functional.gelu(z @ gate.T, approximate="tanh") * (z @ up.T) @ down
        return written * block.pre_feedforward_layernorm_2.weight / scale

    def recorded(self, logits):
        return logits.softmax(dim=-1)


class Gemma4(Gemma4Text):
    """Inside a model that also sees, as published."""

    model_type = "gemma4"
    prefix = "model.language_model."

    def make_config(self, **changes):
        return AutoConfig.for_model("gemma4", text_config=SHARED | self.config | changes, vision_config=None)

    def decoder(self, model):
        inner = getattr(model, "model", model)
        return getattr(inner, "language_model", inner)
