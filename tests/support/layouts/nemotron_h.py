from typing import ClassVar

import torch

from layouts.base import EXPERTS
from layouts.deepseek_v3 import DeepseekV3


class NemotronH(DeepseekV3):
    """DeepSeek-V3's routing; experts of two matrices in a latent space, with one projection into it and one out of it."""

    model_type = "nemotron_h"
    config: ClassVar = {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "n_routed_experts": EXPERTS,
        "moe_intermediate_size": 16,
        "moe_latent_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "intermediate_size": 40,
    }
    sparse = (1, 3)
    prefix = "backbone."
    block = "mixer"
    live_block = "mixer"
    fused = ("up_proj", "down_proj")

    def save(self, model, folder):
        model.save_pretrained(folder)

    def matrices(self, tensors, layer, expert):
        start = self.start(layer)
        up, down = (tensors[f"{start}experts.{expert}.{name}_proj.weight"].double() for name in ("up", "down"))
        into, back = (tensors[f"{start}{name}_latent_proj.weight"].double() for name in ("fc1", "fc2"))
        return up @ into, (back @ down).T

    def routed(self, block, x, weights, index):
        return block.fc2_latent_proj(block.experts(block.fc1_latent_proj(x), index, weights))

    def expert(self, block, x, up, down):
        return torch.relu(x @ up.T) ** 2 @ down
