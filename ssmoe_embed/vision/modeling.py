"""CLIP-MoE on transformers' own CLIP: every MLP of both towers gives way to experts and a router, and texts may be long."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)
from transformers.models.clip.modeling_clip import CLIPMLP


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


KEPT_POSITIONS = 20
"""Of the text's positions, how many stay as CLIP's when they are stretched (https://arxiv.org/abs/2403.15378)."""
STRETCH = 4
"""How far apart the other ones are moved."""


class ClipMoeBlock(nn.Module):
    """`E` experts in the place of one MLP; shapes: `B` rows, `T` tokens, `N = B·T`, `H` hidden size, `k` experts per token.

    Every token is routed: the class token, patches and a text's padding.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(CLIPMLP(config) for _ in range(config.num_experts))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The weighted sum of each token's experts, `[B,T,H] → [B,T,H]`."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])  # [B,T,H] → [N,H]
        weights, chosen = self.gate(tokens).softmax(dim=-1, dtype=torch.float32).topk(self.top_k)  # [N,k]
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(tokens.dtype)
        result = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, rank = (chosen == index).nonzero(as_tuple=True)  # n of the N tokens, each at most once
            if not len(rows):
                continue  # bitsandbytes' product on a CPU divides by the number of rows
            result.index_add_(0, rows, weights[rows, rank, None] * expert(tokens[rows]))
        return result.reshape(hidden_states.shape)  # [N,H] → [B,T,H]


class ClipMoeModel(CLIPModel):
    """CLIP-MoE: `get_text_features`, `get_image_features` and `forward` are those of `CLIPModel`."""

    config_class = ClipMoeConfig

    def __init__(self, config: ClipMoeConfig) -> None:
        super().__init__(config)
        for tower in (self.vision_model, self.text_model):
            for layer in tower.encoder.layers:
                layer.mlp = ClipMoeBlock(tower.config)
        self.post_init()

    @classmethod
    def from_clip(
        cls, clip: CLIPModel, experts: int = 4, *, top_k: int = 2, long_texts: bool = False, seed: int = 0
    ) -> ClipMoeModel:
        """Turn a dense CLIP into a CLIP-MoE that computes the same: its experts are copies of the dense MLPs.

        Args:
            clip: A CLIP of transformers; it is not changed.
            experts: Experts per block.
            top_k: Experts per token.
            long_texts: Stretch the text's positions, see `stretched_positions` (CLIP's 77 become 248); what is
                computed then stays the same for texts of at most 20 tokens.
            seed: Of the routers, which are random: `N(0, 1/H)`.

        Raises:
            ValueError: The model is no dense CLIP of transformers, or a token cannot be sent to so many experts.
        """
        if not isinstance(clip, CLIPModel) or isinstance(clip, ClipMoeModel):
            raise ValueError(
                f"A {type(clip).__name__} cannot be given experts; pass a dense transformers.CLIPModel, such as "
                'CLIPModel.from_pretrained("openai/clip-vit-large-patch14").'
            )
        tensors = dict(clip.state_dict())
        position = "text_model.embeddings.position_embedding.weight"
        if long_texts:
            tensors[position] = stretched_positions(tensors[position])
        moe = {"num_experts": experts, "num_experts_per_tok": top_k}
        text, vision = _without_type(clip.config.text_config), _without_type(clip.config.vision_config)
        text["max_position_embeddings"] = len(tensors[position])
        config = ClipMoeConfig(
            **_without_type(clip.config) | {"text_config": text | moe, "vision_config": vision | moe}
        )
        generator = torch.Generator().manual_seed(seed)
        made: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            before, block, after = name.partition(".mlp.")
            for expert in range(experts) if block else ():
                made[f"{before}.mlp.experts.{expert}.{after}"] = tensor.clone()
            if not block:
                made[name] = tensor.clone()
            elif after == "fc1.weight":
                width = tensor.shape[1]  # H
                gate = torch.randn(experts, width, generator=generator) / math.sqrt(width)
                made[f"{before}.mlp.gate.weight"] = gate.to(tensor)
        return cls.from_pretrained(None, config=config, state_dict=made, dtype=clip.dtype)


def stretched_positions(positions: torch.Tensor, *, kept: int = KEPT_POSITIONS, factor: int = STRETCH) -> torch.Tensor:
    """Long-CLIP's stretch of a text tower's positions (section 3.1 of https://arxiv.org/abs/2403.15378).

    The first ones are kept; from there on `factor - 1` new ones are put after each, on the straight line to the next one,
    and after the last one on the line from the one before it.

    Args:
        positions: `[P,H]`.
        kept: How many are kept.
        factor: How many each other one becomes.

    Returns:
        `[kept + factor·(P - kept), H]`: 248 of CLIP's 77.

    Raises:
        ValueError: There are not two positions besides the kept ones.
    """
    if len(positions) < kept + 2:
        raise ValueError(
            f"{len(positions)} positions cannot be stretched after the first {kept}; {kept + 2} are needed."
        )
    rest = positions[kept:].float()
    slopes = torch.cat([rest.diff(dim=0), (rest[-1] - rest[-2])[None]])  # [P-kept,H]
    steps = torch.arange(factor, device=rest.device)[:, None] / factor  # [factor,1]
    stretched = rest[:, None] + steps * slopes[:, None]  # [P-kept,factor,H]
    return torch.cat([positions[:kept], stretched.flatten(0, 1).to(positions.dtype)])


def register() -> None:
    """Let transformers' Auto classes find the model and its processor. Doing so twice does nothing."""
    AutoConfig.register("clip_moe", ClipMoeConfig, exist_ok=True)
    AutoModel.register(ClipMoeConfig, ClipMoeModel, exist_ok=True)
    AutoTokenizer.register(ClipMoeConfig, CLIPTokenizer, exist_ok=True)
    AutoImageProcessor.register(  # by PIL alone, so that vectors do not depend on whether torchvision is installed
        ClipMoeConfig, image_processor_classes={"pil": CLIPImageProcessorPil}, exist_ok=True
    )
    AutoProcessor.register(ClipMoeConfig, CLIPProcessor, exist_ok=True)


def _without_type(config: Any) -> dict[str, Any]:
    """What a configuration sets, without naming its own kind."""
    left_out = ("model_type", "architectures", "transformers_version", "text_config", "vision_config", "dtype")
    return {name: value for name, value in config.to_dict().items() if name not in left_out}
