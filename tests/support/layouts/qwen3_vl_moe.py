from typing import ClassVar

from safetensors.torch import load_file, save_file

from layouts.base import EXPERTS, HIDDEN, SHARED, top_k
from layouts.glm4v_moe import MROPE, Glm4vMoe


class Qwen3VLMoe(Glm4vMoe):
    """All experts in one tensor, transposed against what the model has in memory; no shared expert, softmax scores."""

    model_type = "qwen3_vl_moe"
    shared = False
    score = "softmax"
    sparse = (0, 2)
    config: ClassVar = {
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "num_experts": EXPERTS,
        "moe_intermediate_size": 24,
        "intermediate_size": 40,
        "num_experts_per_tok": 3,
        "head_dim": 8,
        "rope_parameters": MROPE,
    }
    vision: ClassVar = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": SHARED["hidden_size"],
        "num_position_embeddings": 16,
        "patch_size": 4,
        "deepstack_visual_indexes": [0],
    }

    def save(self, model, folder):
        """Transposed, as published; transformers 5.24 writes what it has in memory, and reads both."""
        model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        fused = {n: t.transpose(1, 2).contiguous() for n, t in tensors.items() if ".experts." in n}
        save_file(tensors | fused, folder / "model.safetensors", {"format": "pt"})

    def matrices(self, tensors, layer, expert):
        gate_up, down = (tensors[f"{self.start(layer)}experts.{name}"][expert].double() for name in self.fused)
        if len(gate_up) != HIDDEN:  # not as published, [H,2I] and [I,H], but as transformers writes it
            gate_up, down = gate_up.T, down.T
        return gate_up[:, : len(down)].T, gate_up[:, len(down) :].T, down

    def route(self, p, learned, tensors, layer, config):
        return top_k(p, config.num_experts_per_tok, renormalise=True)
