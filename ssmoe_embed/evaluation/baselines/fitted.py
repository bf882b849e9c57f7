"""Baselines that are fitted on sample texts: router scores weighed as TF-IDF weighs words, and the codes of a codebook."""

from __future__ import annotations

import torch

from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.evaluation.baselines.base import ModelBaseline, sample_texts
from ssmoe_embed.routing.codebook import CodebookRouting, CodebookSettings
from ssmoe_embed.routing.policies import SpectralMix
from ssmoe_embed.routing.sites import recording, routed


class IdfRouter(ModelBaseline):
    """The routers' scores at the last token, each expert's weighed by how rarely it is chosen.

    The weight is `-log` of the expert's mean share of its layer's scores over sample texts, as a word's is of the share of
    texts that have it. A fitted calibration gives every feature the same spread again, so it undoes the weights.

    An idea of ours; https://arxiv.org/abs/2601.03425 observed that some experts are chosen for nearly everything.
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


class Codes(ModelBaseline):
    """The share of a text's tokens, template included, that each code of each layer has: see `routing/codebook.py`.

    After VQMoE, https://arxiv.org/abs/2411.19402.
    """

    def __init__(self, encoder: Encoder, forward: ForwardSettings) -> None:
        """See `ModelBaseline`."""
        super().__init__(encoder, forward)
        self._book: CodebookRouting | None = None

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        model = self.encoder.model
        if self._book is None:
            self._book = CodebookSettings().made(model, self.encoder.tokenizer)
        order = tokens["attention_mask"].argsort(dim=1, descending=True, stable=True)  # [B,T], real tokens first
        ids, mask = (tokens[name].gather(1, order) for name in ("input_ids", "attention_mask"))
        with recording(mask.flatten().nonzero().squeeze(1)) as taken, routed(None):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        sizes = mask.sum(dim=1).tolist()
        by_text = {layer: torch.split(inputs, sizes) for layer, inputs in taken.inputs.items()}
        texts = ({layer: parts[text] for layer, parts in by_text.items()} for text in range(len(sizes)))
        return torch.stack([self._book.histogram(inputs).float() for inputs in texts])
