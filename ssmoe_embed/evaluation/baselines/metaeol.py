"""MetaEOL, https://arxiv.org/abs/2402.18458: the mean over several prompts that ask for one word."""

from __future__ import annotations

import torch

from ssmoe_embed.evaluation.baselines.base import ModelBaseline


class MetaEOL(ModelBaseline):
    """The mean over several one-word templates of the state at their end; ours stand in `embedding/prompts.py`."""

    prompt = "metaeol"

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        return self.read(tokens).hidden
