"""4-bit base models whose experts are 4-bit too, and what a model's parts take in memory."""

from ssmoe_embed.quantization.loading import Component, memory_by_component
from ssmoe_embed.quantization.settings import Quantization, QuantizationSettings

__all__ = ["Component", "Quantization", "QuantizationSettings", "memory_by_component"]
