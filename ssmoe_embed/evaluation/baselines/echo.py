"""Echo embeddings, https://arxiv.org/abs/2402.15449: the text is given twice and read at its second copy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.tokenization import DataTokenizer, clean_unicode
from ssmoe_embed.evaluation.baselines.base import batch_of, leading_ids
from ssmoe_embed.evaluation.baselines.mean_pooling import MeanPooling


class Echo(MeanPooling):
    """The text given twice; the mean of the states at its second copy, each of which has seen the whole text."""

    prompt = "echo"

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """See `ModelBaseline.tokens`; `pooled` is 1 at the tokens of the second copy."""
        data = DataTokenizer(self.encoder.tokenizer)
        before = leading_ids(self.encoder, self.forward, data)
        return batch_of([self._row(text, data, before) for text in texts], self.encoder)

    def _row(self, text: str, data: DataTokenizer, before: list[int]) -> tuple[list[int], list[int]]:
        """Ids of a text in the template, cut to fit, and where its second copy is."""
        [template], text = templates(self.forward.prompt, self.forward.instruction), clean_unicode(text)
        room = self.encoder.limit(self.forward) - len(before)
        while True:
            whole = template.wrap(text)
            [row] = data.encode([whole])
            if len(row.ids) <= room or not text:
                break
            [own] = data.encode([text])
            keep = len(own.ids) - math.ceil((len(row.ids) - room) / 2)
            text = text[: own.offsets[keep - 1][1]] if keep > 0 else ""
        first = len(whole) - len(text)
        second = [int(end > first) for _, end in row.offsets]
        if not any(second):
            second[-1] = 1
        return before + row.ids, [0] * len(before) + second
