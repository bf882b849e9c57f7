"""Baselines that pool a model's states as they are: mean pooling, Echo embeddings, MetaEOL and AlignedWVA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.tokenization import DataTokenizer, clean_unicode
from ssmoe_embed.evaluation.baselines.base import ModelBaseline, batch_of, leading_ids


class MeanPooling(ModelBaseline):
    """The mean of the last hidden states of all tokens, template included."""

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        states = self.read(tokens).tokens  # [B,T,H]
        weights = tokens.get("pooled", tokens["attention_mask"]).to(states.device).unsqueeze(-1).float()  # [B,T,1]
        return torch.where(weights > 0, states.float(), 0.0).sum(dim=1) / weights.sum(dim=1)  # [B,H]


class Echo(MeanPooling):
    """Echo embeddings, https://arxiv.org/abs/2402.15449: the text given twice.

    The mean is of the states at its second copy, each of which has seen the whole text.
    """

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


class MetaEOL(ModelBaseline):
    """MetaEOL, https://arxiv.org/abs/2402.18458: the mean over several one-word templates of the state at their end.

    Our templates stand in `embedding/prompts.py`.
    """

    prompt = "metaeol"

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        return self.read(tokens).hidden


class AlignedWVA(ModelBaseline):
    """AlignedWVA, https://arxiv.org/abs/2602.01572: what attention adds to the residual stream at the last token.

    That is the values of all tokens, weighed by the last token's attention to them and brought into the stream's space by
    the output projection; the mean is over the later half of the layers.
    Which layers are pooled is not in what we could read of the paper; the half is ours.
    """

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        family, model = self.encoder.family, self.encoder.model
        layers = list(family.decoder(model).layers)
        found = [
            part
            for layer in layers[len(layers) // 2 :]
            for name, part in layer.named_children()
            if family.is_attention(layer, name) and any(isinstance(one, nn.Linear) for one in part.modules())
        ]
        last = tokens["attention_mask"].sum(dim=1) - 1  # [B], where the model is given padding on the right
        with _outputs(found, last, self.encoder.hidden_size) as outputs:
            device = self.read(tokens).hidden.device
        return torch.stack([one.to(device) for one in outputs]).mean(dim=0)  # [B,H]


@contextmanager
def _outputs(parts: list[nn.Module], last: torch.Tensor, size: int) -> Iterator[list[torch.Tensor]]:
    """What modules give out at the last tokens while the block runs a model, float32 `[B,H]` each."""
    found: list[torch.Tensor] = []

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output  # [B,T,H]
        if isinstance(states, torch.Tensor) and states.ndim == 3 and states.shape[-1] == size:
            places = last.to(states.device)
            found.append(states[torch.arange(len(places), device=states.device), places].float())

    with ExitStack() as hooks:
        for part in parts:
            hooks.enter_context(part.register_forward_hook(hook))
        yield found
