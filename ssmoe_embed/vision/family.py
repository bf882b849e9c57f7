"""The adapter of CLIP-MoE's towers: each of the two is a model of its own, whose blocks all have experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import MoEFamily


class ProjectionLayout(Choice):
    """How an expert's `c_proj [H,I]` is brought into hidden space."""

    TRANSPOSE = "transpose"
    """Transposed, so that its rows are directions in hidden space."""
    RESHAPE = "reshape"
    """Reshaped to `[I,H]`, which scrambles its rows: the mistake of the paper's release, kept to reproduce it."""


class ClipMoeTower(MoEFamily):
    """The image or the text tower of a CLIP-MoE; it is no language model, so it is not in the table of families."""

    def __init__(self, layout: ProjectionLayout = ProjectionLayout.TRANSPOSE) -> None:
        self.layout = layout

    @property
    def model_types(self) -> tuple[str, ...]:
        """See `MoEFamily.model_types`."""
        return "clip_moe_text_model", "clip_moe_vision_model"

    def text_config(self, config: Any) -> Any:
        """See `MoEFamily.text_config`; a tower's configuration is its own."""
        return config

    def decoder(self, model: nn.Module) -> Any:
        """See `MoEFamily.decoder`; the stack of blocks.

        Raises:
            ValueError: The model has two towers.
        """
        if not hasattr(model, "encoder"):
            raise ValueError(
                f"{type(model).__name__} is routed tower by tower; pass its .vision_model or .text_model, or use "
                "ssmoe_embed.vision.reroute_towers(model, …)."
            )
        return model.encoder

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`; `c_fc` and `c_proj`, which has no gate beside it."""
        into, back = block.experts[expert].fc1.weight, block.experts[expert].fc2.weight  # [I,H], [H,I]
        return into, back.T if self.layout is ProjectionLayout.TRANSPOSE else back.reshape(into.shape)
