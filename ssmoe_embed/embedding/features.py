"""Reading → blocks of features → one vector: what a method takes of a forward pass, and how its parts are joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from ssmoe_embed.embedding.encoder import Encoder, Reading
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.settings import Calibration, Combination, EmbeddingSettings, ForwardSettings
from ssmoe_embed.routing.policies import SpectralMix

HIDDEN = "hidden"
ROUTING = "routing"


@dataclass(frozen=True)
class Block:
    """One block of features: the hidden state, or one routing signal of all layers, under one forward pass.

    Attributes:
        forward: The forward pass.
        signal: The routing signal; None for the hidden state.
        mix: Of the signal `weights`; None for all others.
    """

    forward: ForwardSettings
    signal: RoutingSignal | None = None
    mix: SpectralMix | None = None

    @property
    def part(self) -> str:
        """Its place in a vector: `"hidden"` or `"routing"`."""
        return HIDDEN if self.signal is None else ROUTING

    @property
    def name(self) -> str:
        """What the features are called before calibration: the same for all settings that have this block."""
        if self.mix is not None:
            return f"weights({self.mix.alpha!r},{self.mix.mix})/{self.forward.name}"
        return f"{self.signal or HIDDEN}/{self.forward.name}"

    def factors(self, calibration: Calibration) -> str:
        """What its calibration factors are kept under, on disk too."""
        return f"{calibration}/{self.name}"

    @property
    def is_spectral(self) -> bool:
        """Whether other spectral routers would make other features."""
        mixes = self.mix is not None and self.mix.alpha > 0
        return self.forward.mixes or mixes or self.signal is RoutingSignal.EV_LOGITS


def blocks_of(settings: EmbeddingSettings) -> tuple[Block, ...]:
    """The blocks that a vector consists of, in their order."""
    features = settings.features
    found = [Block(settings.forward)] if features.hidden else []
    if features.signal is not None:
        mix = features.mix if features.signal is RoutingSignal.WEIGHTS else None
        found.append(Block(settings.forward, features.signal, mix))
    return tuple(found)


def block_features(reading: Reading, block: Block, encoder: Encoder) -> torch.Tensor:
    """The features `[B,D]` of one block, float32, before calibration.

    A text that stands in several templates has as many rows in the reading; its features are their mean.
    """
    features = reading.hidden
    if block.signal is not None:
        features = encoder.signal(reading, block.signal, block.mix or SpectralMix())
    count = len(templates(block.forward.prompt))  # P
    if count == 1:
        return features
    return features.reshape(-1, count, features.shape[-1]).mean(dim=1)  # [B·P,D] → [B,D]


def block_size(block: Block, encoder: Encoder) -> int:
    """`D`: numbers per text."""
    return encoder.hidden_size if block.signal is None else encoder.routing_size


def combine(blocks: Mapping[str, torch.Tensor], combination: Combination, routing_weight: float) -> torch.Tensor:
    """One vector per text.

    MoEE (https://arxiv.org/abs/2410.10814) adds the blocks' cosines with weights; `sum` puts that into the vectors: with
    each block of unit length times √weight, one dot product is the weighted sum of cosines, so any vector index serves it.

    Args:
        blocks: `"hidden" [B,H]` and `"routing" [B,ΣE]`, or one of them.
        combination: How to join them.
        routing_weight: The routing block's weight in a `sum`.

    Returns:
        `[B,D]`, `D` the sum of the blocks' sizes.
    """
    if combination is Combination.CONCAT:
        return torch.cat(list(blocks.values()), dim=-1)
    weights = {HIDDEN: 1.0, ROUTING: routing_weight}
    return torch.cat([normalize(block, dim=-1) * weights[part] ** 0.5 for part, block in blocks.items()], dim=-1)
