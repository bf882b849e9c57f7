"""Reading → the blocks of features that a method consists of, and the names their calibration is kept under."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ssmoe_embed.embedding.combination import HIDDEN, ROUTING
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.reading import Reader, Reading
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.families import MoELayer
from ssmoe_embed.routing import SpectralRouting
from ssmoe_embed.spectral.routers import SpectralRouters


def read_blocks(
    reading: Reading, settings: EmbeddingSettings, reader: Reader, routers: SpectralRouters | None
) -> dict[str, torch.Tensor]:
    """The blocks of one reading: `"hidden" [B,H]` and `"routing" [B,ΣE]`, or one of them, float32.

    A text that stands in several templates has as many rows in the reading; its features are their mean.
    """
    chosen = settings.representation
    blocks = {HIDDEN: reading.hidden} if chosen.hidden else {}
    if chosen.signal is not None:
        spectral = SpectralRouting(routers, settings.alpha, settings.mix) if routers else None
        blocks[ROUTING] = reader.signal(reading, chosen.signal, spectral)
    count = len(templates(settings.prompt))
    if count == 1:
        return blocks
    return {name: block.reshape(-1, count, block.shape[-1]).mean(dim=1) for name, block in blocks.items()}  # → [B,D]


def check_experts(settings: EmbeddingSettings, layers: Sequence[MoELayer]) -> None:
    """Make sure that a method that reads routers finds some: the first layers of many families are dense.

    Raises:
        ValueError: There is none among the layers that are run.
    """
    if settings.representation.signal is not None and not layers:
        raise ValueError(
            f"hidden_layer={settings.hidden_layer} lies below the first layer with experts, so method="
            f"{str(settings.method)!r} has no router to read; choose a later layer, or method='smoe'."
        )


def forward_pass(settings: EmbeddingSettings) -> str:
    """What names the forward pass that settings take: those of one name can share it."""
    routing = f"ssmoe({settings.alpha!r},{settings.mix})" if settings.reroutes else "original"
    return f"{routing}/layer {settings.hidden_layer}/{settings.prompt}"


def block_names(settings: EmbeddingSettings) -> dict[str, str]:
    """For each block, the name of its calibration: the same for all settings whose block is the same."""
    chosen = settings.representation
    end = f"{forward_pass(settings)}"
    names = {HIDDEN: f"{settings.calibration}/{HIDDEN}/{end}"} if chosen.hidden else {}
    if chosen.signal is RoutingSignal.WEIGHTS:
        names[ROUTING] = f"{settings.calibration}/weights({settings.alpha!r},{settings.mix})/{end}"
    elif chosen.signal is not None:
        names[ROUTING] = f"{settings.calibration}/{chosen.signal}/{end}"
    return names
