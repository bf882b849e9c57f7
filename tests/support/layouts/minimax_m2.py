from typing import ClassVar

import torch
from transformers import AutoModelForImageTextToText

from layouts.base import EXPERTS, Layout, biased_top_k
from layouts.glm4v_moe import Glm4vMoe


class MiniMaxM2(Layout):
    """Mixtral's names, sigmoid scores, and a bias of the block that only chooses."""

    model_type = "minimax_m2"
    config: ClassVar = {
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "num_experts_per_tok": 3,
        "head_dim": 8,
        "rotary_dim": 4,
    }
    block = "block_sparse_moe"
    projections = ("w1", "w3", "w2")
    score = "sigmoid"

    def route(self, p, learned, tensors, layer, config):
        index = biased_top_k(
            p, tensors[self.start(layer) + "e_score_correction_bias"].double(), config.num_experts_per_tok
        )
        weights = p.gather(1, index)
        return weights / weights.sum(dim=-1, keepdim=True), index


class MiniMaxM3(MiniMaxM2):
    """Inside a model that also sees; a shared expert, and a block that scales what its clamping experts add up to."""

    model_type = "minimax_m3_vl"
    auto = AutoModelForImageTextToText
    prefix = "language_model.model."
    shared = True
    sparse = (1, 2)
    config: ClassVar = MiniMaxM2.config | {
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["full_attention"] * 3,
        "dense_intermediate_size": 40,
        "shared_intermediate_size": 24,
        "routed_scaling_factor": 2.0,
    }
    vision: ClassVar = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 4,
    }
    make_config = Glm4vMoe.make_config
    decoder = Glm4vMoe.decoder

    def routed(self, block, x, weights, index):
        return self.config["routed_scaling_factor"] * block.experts(x, index, weights)

    def expert(self, block, x, gate, up, down):
        gated, up = (x @ gate.T).clamp(max=7.0), (x @ up.T).clamp(-7.0, 7.0)
        return self.config["routed_scaling_factor"] * (gated * torch.sigmoid(1.702 * gated) * (up + 1)) @ down
