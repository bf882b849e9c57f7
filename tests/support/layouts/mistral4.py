from typing import ClassVar

import torch
from transformers import AutoModel

from layouts.base import Layout
from layouts.deepseek_v3 import DeepseekV3


class Mistral4(DeepseekV3):
    """DeepSeek-V3's decoder with softmax scores and without the bias; all experts of a layer in one tensor."""

    model_type = "mistral4"
    auto = AutoModel
    prefix = ""
    score = "softmax"
    config: ClassVar = DeepseekV3.config | {"routed_scaling_factor": 1.5}
    save = Layout.save

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[f"{self.start(layer)}experts.gate_up_proj"][expert].double()  # [2I,H]
        down = tensors[f"{self.start(layer)}experts.down_proj"][expert].double()  # [H,I]
        size = down.shape[1]
        return gate_up[:size], gate_up[size:], down.T

    def correction_bias(self, tensors, layer):
        return torch.zeros(len(self.router(tensors, layer)), dtype=torch.double)
