"""Routing policies, and installing one on a live model."""

from ssmoe_embed.routing.controls import EqualWeights, LeastSimilar
from ssmoe_embed.routing.mixing import Mix
from ssmoe_embed.routing.policies import RoutingPolicy, SpectralMix, SpectralRouting
from ssmoe_embed.routing.sites import Rerouting, reroute
from ssmoe_embed.routing.tokens import HashRouting, RandomRouting

__all__ = [
    "EqualWeights",
    "HashRouting",
    "LeastSimilar",
    "Mix",
    "RandomRouting",
    "Rerouting",
    "RoutingPolicy",
    "SpectralMix",
    "SpectralRouting",
    "reroute",
]
