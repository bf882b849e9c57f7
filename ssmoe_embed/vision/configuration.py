"""CLIP-MoE's configuration: CLIP's, with experts in every block of both towers and room for long texts.

Source: CLIP-MoE, https://arxiv.org/abs/2409.19291.
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig


@strict
class ClipMoeTextConfig(CLIPTextConfig):
    """The text tower: `num_experts` MLPs per block, of which `num_experts_per_tok` are run for a token."""

    model_type = "clip_moe_text_model"
    max_position_embeddings: int = 248
    num_experts: int = 4
    num_experts_per_tok: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        check_experts(self)
        super().__post_init__(**kwargs)


@strict
class ClipMoeVisionConfig(CLIPVisionConfig):
    """The image tower: `num_experts` MLPs per block, of which `num_experts_per_tok` are run for a token."""

    model_type = "clip_moe_vision_model"
    num_experts: int = 4
    num_experts_per_tok: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        check_experts(self)
        super().__post_init__(**kwargs)


@strict
class ClipMoeConfig(CLIPConfig):
    """Both towers and the space that they share."""

    model_type = "clip_moe"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": ClipMoeVisionConfig,
        "text_config": ClipMoeTextConfig,
    }


def check_experts(config: Any) -> None:
    """Make sure that a token can be sent to `num_experts_per_tok` of `num_experts` experts.

    Raises:
        ValueError: It cannot.
    """
    if not 1 <= config.num_experts_per_tok <= config.num_experts:
        raise ValueError(
            f"num_experts_per_tok={config.num_experts_per_tok} of num_experts={config.num_experts} cannot be chosen; "
            "take between 1 and num_experts (CLIP-MoE: 2 of 4)."
        )
