"""Step 3.5 and 3.7 (https://huggingface.co/stepfun-ai/Step-3.7-Flash); the text part."""

from __future__ import annotations

import torch
from transformers import AutoModel

from ssmoe_embed.checkpoints.float8 import read_row
from ssmoe_embed.checkpoints.shards import TensorSource
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


class Step3(MoEFamily):
    """Gate, up and down of all experts in one tensor each. The correction bias chooses and does not weigh."""

    models = {"step3p7": "Step-3.7-Flash", "step3p5": "its text part"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `moe_router_scaling_factor`",
        beside="a shared expert; dense layers by `mlp_layer_types`; the vision model is not used",
        layout="`gate_proj`, `up_proj`, `down_proj` of all experts in one tensor each, in `moe`",
        from_disk="16 bits",
        unsupported="images",
    )
    score = Score.SIGMOID
    router_name = "layers.{layer}.moe.gate.weight"
    matrix_names = (
        "layers.{layer}.moe.gate_proj.weight",
        "layers.{layer}.moe.up_proj.weight",
        "layers.{layer}.moe.down_proj.weight",
    )

    def register(self) -> None:
        """See `MoEFamily.register`; transformers knows the text part only inside the whole."""
        from transformers.models.step3p7 import modeling_step3p7 as step

        AutoModel.register(step.Step3p7TextConfig, step.Step3p7TextModel, exist_ok=True)

    def stored_matrices(self, source: TensorSource, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`."""
        names = [prefix + name.format(layer=layer) for name in self.matrix_names]
        if names[0] not in source:
            return super().stored_matrices(source, prefix, layer, expert)
        gate, up, down = (read_row(source, name, expert) for name in names)
        return gate, up, down.T
