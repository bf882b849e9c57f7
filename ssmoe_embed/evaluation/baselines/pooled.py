"""Training-free embeddings of a base model that pool or prompt in another way, and the frame of all such baselines.

Mean pooling; Echo, https://arxiv.org/abs/2402.15449; MetaEOL, https://arxiv.org/abs/2402.18458; Token Prepending,
https://arxiv.org/abs/2412.11556; the codes of a codebook, after VQMoE, https://arxiv.org/abs/2411.19402; router features
weighed as TF-IDF weighs words, an idea of ours after what https://arxiv.org/abs/2601.03425 observed: some experts are chosen
for nearly everything.

All run the model under its own routers. They take the template of the evaluated model, or the one that is asked for, except
for those that are a template.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.encoder import Encoder, Reading
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.embedding.tokenization import DataTokenizer, clean_unicode
from ssmoe_embed.routing.codebook import CodebookRouting, CodebookSettings
from ssmoe_embed.routing.policies import SpectralMix
from ssmoe_embed.routing.sites import recording, routed

_SAMPLE = 512
"""Texts of the calibration sample that a baseline is fitted on, where it is fitted."""


def sample_texts() -> list[str]:
    """Texts that a baseline is fitted on, evenly drawn from those that come with the package."""
    texts = calibration_texts()
    return texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE]


class ModelBaseline(ABC):
    """A training-free way to make vectors with a base model; it changes nothing of the model."""

    prompt: ClassVar[str | None] = None
    """The template that it is about; None for any."""

    def __init__(self, encoder: Encoder, forward: ForwardSettings) -> None:
        """Bind a model.

        Args:
            encoder: What reads texts.
            forward: Layer, template and length; the routing is the model's own.
        """
        self.encoder = encoder
        self.forward = replace(forward, routing=None, prompt=self.prompt or forward.prompt)

    @torch.inference_mode()
    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """The features of `B` texts, float32 `[B,D]`; of a text that stands in `P` templates their mean."""
        rows = self.rows(self.tokens(texts))  # [B·P,D]
        return rows.reshape(len(texts), -1, rows.shape[-1]).mean(dim=1)  # [B·P,D] → [B,D]

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the model is given: `input_ids` and `attention_mask`, `[B·P,T]`."""
        tokens = self.encoder.tokenize(texts, self.forward)
        return {name: value.to(self.encoder.model.device) for name, value in tokens.items()}

    @abstractmethod
    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """The features `[B·P,D]` of a batch."""

    def read(self, tokens: dict[str, torch.Tensor]) -> Reading:
        """What the forward pass tells of a batch."""
        return self.encoder.read({name: tokens[name] for name in ("input_ids", "attention_mask")}, self.forward)


class MeanPooling(ModelBaseline):
    """The mean of the last hidden states of all tokens, template included."""

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        return _mean(self.read(tokens).tokens, tokens.get("pooled", tokens["attention_mask"]))


class Echo(MeanPooling):
    """The text given twice; the mean of the states at its second copy, each of which has seen the whole text."""

    prompt = "echo"

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """See `ModelBaseline.tokens`; `pooled` is 1 at the tokens of the second copy."""
        data = DataTokenizer(self.encoder.tokenizer)
        before = _leading(self.encoder, self.forward, data)
        return _batch([self._row(text, data, before) for text in texts], self.encoder)

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
    """The mean over several one-word templates of the state at their end; ours stand in `embedding/prompts.py`."""

    prompt = "metaeol"

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        return self.read(tokens).hidden


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
        starts = [_leading(encoder, self.forward, data) + data.fill(head.__add__, [""])[0] for head in heads]
        candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        extra = next((token for token in candidates if token is not None), 0)
        rows, places = [], []
        for number, (ids, mask) in enumerate(zip(read["input_ids"], read["attention_mask"], strict=True)):
            row = ids[mask.bool()].tolist()
            place = _common(starts[number % len(own)], row)
            rows.append(([*row[:place], extra, *row[place:]], [1] * (len(row) + 1)))
            places.append(place)
        return _batch(rows, encoder) | {"place": torch.tensor(places, device=encoder.model.device)}

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        layers = self.encoder.family.decoder(self.encoder.model).layers
        chosen = list(layers)[1 : 1 + max(1, len(layers) // 4)]
        last = tokens["attention_mask"].sum(dim=1) - 1  # [B]
        with _before(chosen, lambda hidden: _prepended(hidden, tokens["place"], last)):
            return self.read(tokens).hidden


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


def _mean(tokens: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """The mean of states `[B,T,H]` where `pooled [B,T]` is 1, float32 `[B,H]`."""
    weights = pooled.to(tokens.device).unsqueeze(-1).float()  # [B,T,1]
    return torch.where(weights > 0, tokens.float(), 0.0).sum(dim=1) / weights.sum(dim=1)


def _batch(rows: Sequence[tuple[list[int], list[int]]], encoder: Encoder) -> dict[str, torch.Tensor]:
    """Rows of ids, padded on the right, each with the tokens that are pooled."""
    ids, pooled = ([torch.tensor(row) for row in part] for part in zip(*rows, strict=True))
    padding = float(encoder.tokenizer.pad_token_id or 0)
    found = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=padding),  # [B,T]
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "pooled": pad_sequence(pooled, batch_first=True),
    }
    return {name: value.to(encoder.model.device) for name, value in found.items()}


def _leading(encoder: Encoder, forward: ForwardSettings, data: DataTokenizer) -> list[int]:
    """What the tokenizer puts before every text."""
    [row] = encoder.tokenize(["a"], replace(forward, prompt="none", instruction=""))["input_ids"].tolist()
    return list(row[: len(row) - len(data.encode(["a"])[0].ids)])


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

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
