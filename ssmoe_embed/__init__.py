"""Training-free sentence embeddings from Mixture-of-Experts language models."""

from typing import TYPE_CHECKING

from ssmoe_embed.common.lazy import after_import, lazy_names
from ssmoe_embed.embedding import register

if TYPE_CHECKING:
    from ssmoe_embed.common.version import __version__
    from ssmoe_embed.embedding.model import EmbeddingModel
    from ssmoe_embed.embedding.module import SSMoE
    from ssmoe_embed.embedding.settings import EmbeddingSettings
    from ssmoe_embed.families import UnsupportedModelError
    from ssmoe_embed.hub.models import build, load
    from ssmoe_embed.routing import SpectralRouting, reroute
    from ssmoe_embed.spectral.routers import SpectralRouters
    from ssmoe_embed.vision.module import SSMoEVision
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ssmoe_embed.common.version": ("__version__",),
            "ssmoe_embed.embedding.model": ("EmbeddingModel",),
            "ssmoe_embed.embedding.module": ("SSMoE",),
            "ssmoe_embed.embedding.settings": ("EmbeddingSettings",),
            "ssmoe_embed.families": ("UnsupportedModelError",),
            "ssmoe_embed.hub.models": ("build", "load"),
            "ssmoe_embed.routing": ("SpectralRouting", "reroute"),
            "ssmoe_embed.spectral.routers": ("SpectralRouters",),
            "ssmoe_embed.vision.module": ("SSMoEVision",),
        },
    )

__all__ = [
    "EmbeddingModel",
    "EmbeddingSettings",
    "SSMoE",
    "SSMoEVision",
    "SpectralRouters",
    "SpectralRouting",
    "UnsupportedModelError",
    "__version__",
    "build",
    "load",
    "reroute",
]

after_import("sentence_transformers", register)
