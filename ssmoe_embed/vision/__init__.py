"""CLIP-MoE under spectral routing: images and texts in one vector space."""

from ssmoe_embed.families import register_adapter
from ssmoe_embed.vision.checkpoint import load_published
from ssmoe_embed.vision.inputs import ImageError, InputReader, read_image
from ssmoe_embed.vision.modeling import ClipMoeConfig, ClipMoeModel, ClipMoeTextConfig, ClipMoeVisionConfig, register
from ssmoe_embed.vision.module import SSMoEVision
from ssmoe_embed.vision.routing import (
    PAPER,
    ClipMoeTower,
    ProjectionLayout,
    Tower,
    VisionRouting,
    reroute_towers,
    spectral_policies,
    spectral_routers,
)

__all__ = [
    "PAPER",
    "ClipMoeConfig",
    "ClipMoeModel",
    "ClipMoeTextConfig",
    "ClipMoeVisionConfig",
    "ImageError",
    "InputReader",
    "ProjectionLayout",
    "SSMoEVision",
    "Tower",
    "VisionRouting",
    "load_published",
    "read_image",
    "reroute_towers",
    "spectral_policies",
    "spectral_routers",
]

register()
register_adapter(ClipMoeTower())
