from typing import ClassVar

from layouts.base import EXPERTS, Layout


class LaraMini(Layout):
    """A shared expert without a gate; linear attention, sliding windows and full attention; all experts in one tensor."""

    model_type = "lara_mini"
    shared = True
    config: ClassVar = {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "sliding_attention", "full_attention"],
        "num_experts": EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 28,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "sliding_window": 16,
    }
    sparse = (0, 1, 2)

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[f"{self.start(layer)}experts.gate_up_proj"][expert].double()  # [2I,H]
        down = tensors[f"{self.start(layer)}experts.down_proj"][expert].double()  # [H,I]
        size = down.shape[1]
        return gate_up[:size], gate_up[size:], down.T
