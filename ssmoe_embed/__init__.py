"""Training-free sentence embeddings from Mixture-of-Experts language models."""

from ssmoe_embed.common.version import __version__
from ssmoe_embed.embedding.model import EmbeddingModel, register
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.families import UnsupportedModelError
from ssmoe_embed.hub.building import build
from ssmoe_embed.hub.loading import load
from ssmoe_embed.routing import SpectralRouting, reroute
from ssmoe_embed.spectral.routers import SpectralRouters

__all__ = [
    "EmbeddingModel",
    "EmbeddingSettings",
    "SSMoE",
    "SpectralRouters",
    "SpectralRouting",
    "UnsupportedModelError",
    "__version__",
    "build",
    "load",
    "reroute",
]

register()
