"""Router features weighed as TF-IDF weighs words: an idea of ours.

https://arxiv.org/abs/2601.03425 observed that some experts are chosen for nearly everything.
"""

from __future__ import annotations

import torch

from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.evaluation.baselines.base import ModelBaseline, sample_texts
from ssmoe_embed.routing.policies import SpectralMix


class IdfRouter(ModelBaseline):
    """The routers' scores at the last token, each expert's weighed by how rarely it is chosen.

    The weight is `-log` of the expert's mean share of its layer's scores over sample texts, as a word's is of the share of
    texts that have it. A fitted calibration gives every feature the same spread again, so it undoes the weights.
    """

    def __init__(self, encoder: Encoder, forward: ForwardSettings) -> None:
        """See `ModelBaseline`."""
        super().__init__(encoder, forward)
        self._weights: torch.Tensor | None = None

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        if self._weights is None:
            self._weights = self._fitted()
        return self._scores(tokens) * self._weights

    def _scores(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.encoder.signal(self.read(tokens), RoutingSignal.SCORES, SpectralMix())

    def _fitted(self) -> torch.Tensor:
        """The weights `[ΣE]`."""
        sample = sorted(sample_texts(), key=len)
        parts = [self._scores(self.tokens(sample[start : start + 32])) for start in range(0, len(sample), 32)]
        mean = torch.cat(parts).double().mean(dim=0)  # [ΣE]
        sizes = [self.encoder.family.expert_count(layer) for layer in self.encoder.layers]
        shares = torch.cat([one / one.sum() for one in torch.split(mean, sizes)])
        return -shares.clamp_min(torch.finfo(torch.float32).tiny).log().float()
