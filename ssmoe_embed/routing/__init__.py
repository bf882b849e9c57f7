"""Routing policies, and installing one on a live model."""

from ssmoe_embed.routing.mixing import Mix
from ssmoe_embed.routing.policies import RoutingPolicy, SpectralRouting
from ssmoe_embed.routing.reroute import Rerouting, reroute

__all__ = ["Mix", "Rerouting", "RoutingPolicy", "SpectralRouting", "reroute"]
