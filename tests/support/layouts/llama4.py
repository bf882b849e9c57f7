from typing import ClassVar

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from layouts.base import EXPERTS, SHARED, Layout, randomised


class Llama4(Layout):
    """The text part of a model that also sees; every other layer is dense; an expert's score scales its input."""

    model_type = "llama4"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "interleave_moe_layer_step": 2,
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "intermediate_size_mlp": 40,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "attention_chunk_size": 64,
        "no_rope_layer_interval": 3,
        "floor_scale": 8,
    }
    vision: ClassVar = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vision_output_dim": 16,
        "image_size": 16,
        "patch_size": 8,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    }
    sparse = (1,)
    prefix = "language_model.model."
    block = "feed_forward"
    gate = "router.weight"
    live_block = "feed_forward"
    live_gate = "router"
    score = "sigmoid"

    def make_config(self, **changes):
        special = {name: SHARED[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        text = SHARED | self.config | changes
        return AutoConfig.for_model("llama4", text_config=text, vision_config=self.vision, **special)

    def make(self, seed=0, **changes):
        return randomised(AutoModelForImageTextToText.from_config(self.make_config(**changes)), seed)

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[f"{self.start(layer)}experts.gate_up_proj"][expert].double()  # [H,2I]
        down = tensors[f"{self.start(layer)}experts.down_proj"][expert].double()  # [I,H]
        return gate_up[:, : self.config["intermediate_size"]].T, gate_up[:, self.config["intermediate_size"] :].T, down

    def decided(self, output):
        weights, index = output[0].topk(self.config["num_experts_per_tok"], dim=-1)  # all others are 0
        assert ((output[0] > 0).sum(dim=-1) == weights.shape[1]).all()
        return weights, index

    def routed(self, block, x, weights, index):
        """The score scales what enters an expert; all experts take as many rows, most of them 0."""
        scores = torch.zeros(len(x), EXPERTS).scatter_(1, index, weights)  # [N,E]
        rows = scores.T[:, :, None] * x  # [E,N,H]
        return block.experts(rows.flatten(0, 1)).view_as(rows).sum(dim=0)

    def live_logits(self, output):
        return output[1]
