from typing import ClassVar

from layouts.base import EXPERTS, Layout, top_k


class GraniteMoe(Layout):
    """All experts in one tensor, gate rows before up rows."""

    model_type = "granitemoe"
    config: ClassVar = {
        "num_local_experts": EXPERTS,
        "intermediate_size": 24,
        "num_experts_per_tok": 3,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.125,
        "logits_scaling": 6.0,
        "tie_word_embeddings": True,
    }
    block = "block_sparse_moe"
    gate = "router.layer.weight"
    live_block = "block_sparse_moe"
    live_gate = "router"

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[f"{self.start(layer)}input_linear.weight"][expert].double()  # [2I,H]
        down = tensors[f"{self.start(layer)}output_linear.weight"][expert].double()  # [H,I]
        size = down.shape[1]
        return gate_up[:size], gate_up[size:], down.T

    def route(self, p, learned, tensors, layer, config):
        return top_k(p, config.num_experts_per_tok, renormalise=True)  # the softmax of the chosen logits


class GraniteMoeShared(GraniteMoe):
    """With a shared expert."""

    model_type = "granitemoeshared"
    config: ClassVar = GraniteMoe.config | {"shared_intermediate_size": 20}


class GraniteMoeHybrid(GraniteMoe):
    """With a shared expert, and Mamba layers below most of the sparse blocks."""

    model_type = "granitemoehybrid"
    config: ClassVar = GraniteMoeShared.config | {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "position_embedding_type": "nope",
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    }
    sparse = (0, 1, 2)


class GraniteMoeSwa(GraniteMoe):
    """Saved under other names; full attention and sliding windows take turns."""

    model_type = "granitemoe_swa"
    config: ClassVar = GraniteMoeShared.config | {"sliding_window": 16}
    gate = "router.weight"

    def matrices(self, tensors, layer, expert):
        gate_up = tensors[f"{self.start(layer)}experts.gate_up_proj"][expert].double()  # [2I,H]
        down = tensors[f"{self.start(layer)}experts.down_proj"][expert].double()  # [H,I]
        size = down.shape[1]
        return gate_up[:size], gate_up[size:], down.T
