"""The codes of a codebook as features, after VQMoE, https://arxiv.org/abs/2411.19402."""

from __future__ import annotations

import torch

from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.evaluation.baselines.base import ModelBaseline
from ssmoe_embed.routing.codebook import CodebookRouting, CodebookSettings
from ssmoe_embed.routing.sites import recording, routed


class Codes(ModelBaseline):
    """The share of a text's tokens, template included, that each code of each layer has: see `routing/codebook.py`."""

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
