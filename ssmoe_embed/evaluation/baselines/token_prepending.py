"""Token Prepending, https://arxiv.org/abs/2412.11556: a token before the text is given what the layer below ended with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.tokenization import DataTokenizer
from ssmoe_embed.evaluation.baselines.base import ModelBaseline, batch_of, leading_ids


class TokenPrepending(ModelBaseline):
    """A token before the text that, from the second layer on, is given the state that the layer below had at the end.

    So every token of the text sees something of what follows it. The authors choose the layers for each model; here it is
    the first quarter of them. What stands at the place before is the tokenizer's end-of-text token.
    """

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """See `ModelBaseline.tokens`; `place` is where the additional token is, `[B·P]`."""
        encoder, tokenizer = self.encoder, self.encoder.tokenizer
        read = encoder.tokenize(texts, replace(self.forward, max_seq_length=encoder.limit(self.forward) - 1))
        data, own = DataTokenizer(tokenizer), templates(self.forward.prompt, self.forward.instruction)
        heads = [one.pattern.partition("{text}")[0] for one in own]
        starts = [leading_ids(encoder, self.forward, data) + data.fill(head.__add__, [""])[0] for head in heads]
        candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        extra = next((token for token in candidates if token is not None), 0)
        rows, places = [], []
        for number, (ids, mask) in enumerate(zip(read["input_ids"], read["attention_mask"], strict=True)):
            row = ids[mask.bool()].tolist()
            place = _common(starts[number % len(own)], row)
            rows.append(([*row[:place], extra, *row[place:]], [1] * (len(row) + 1)))
            places.append(place)
        return batch_of(rows, encoder) | {"place": torch.tensor(places, device=encoder.model.device)}

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        layers = self.encoder.family.decoder(self.encoder.model).layers
        chosen = list(layers)[1 : 1 + max(1, len(layers) // 4)]
        last = tokens["attention_mask"].sum(dim=1) - 1  # [B]
        with _before(chosen, lambda hidden: _prepended(hidden, tokens["place"], last)):
            return self.read(tokens).hidden


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _prepended(hidden: torch.Tensor, place: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """States `[B,T,…]` with the last one also at the place of the additional token."""
    rows = torch.arange(len(hidden), device=hidden.device)
    changed = hidden.clone()
    changed[rows, place.to(hidden.device)] = hidden[rows, last.to(hidden.device)]
    return changed


@contextmanager
def _before(modules: Sequence[nn.Module], change: Any) -> Iterator[None]:
    """Within the block, change the states that enter some decoder layers."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
