"""Training-free embeddings of a base model: their frame, and those made of its hidden states.

All run the model under its own routers. They take the template of the evaluated model, or the one that is asked for, except
for those that are a template. Hidden states are pooled as they are, read with an additional token, or filtered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from ssmoe_embed.checkpoints import Checkpoint, read_weight
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.encoder import Encoder, Reading
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.embedding.tokenization import DataTokenizer, clean_unicode

_SAMPLE = 512
"""Texts of the calibration sample that a baseline is fitted on, where it is fitted."""


def sample_texts() -> list[str]:
    """Texts that a baseline is fitted on, evenly drawn from those that come with the package."""
    texts = calibration_texts()
    return texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE]


class ModelBaseline:
    """A training-free way to make vectors with a base model; it changes nothing of the model.

    Of a kind that does not say otherwise, the vector is the last hidden state at the end of the text.
    """

    prompt: ClassVar[str | None] = None
    """The template that it is about; None for any."""

    def __init__(self, module: SSMoE, forward: ForwardSettings) -> None:
        """Bind a model.

        Args:
            module: Holds the model, and what reads texts.
            forward: Layer, template and length; the routing is the model's own.
        """
        self.encoder, self.source = module.encoder, module.source
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

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """The features `[B·P,D]` of a batch."""
        return self.read(tokens).hidden

    def read(self, tokens: dict[str, torch.Tensor]) -> Reading:
        """What the forward pass tells of a batch."""
        return self.encoder.read({name: tokens[name] for name in ("input_ids", "attention_mask")}, self.forward)


def batch_of(rows: Sequence[tuple[list[int], list[int]]], encoder: Encoder) -> dict[str, torch.Tensor]:
    """Rows of ids, padded on the right, each with the tokens that are pooled."""
    ids, pooled = ([torch.tensor(row) for row in part] for part in zip(*rows, strict=True))
    padding = float(encoder.tokenizer.pad_token_id or 0)
    found = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=padding),  # [B,T]
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "pooled": pad_sequence(pooled, batch_first=True),
    }
    return {name: value.to(encoder.model.device) for name, value in found.items()}


def leading_ids(encoder: Encoder, forward: ForwardSettings, data: DataTokenizer) -> list[int]:
    """What the tokenizer puts before every text."""
    [row] = encoder.tokenize(["a"], replace(forward, prompt="none", instruction=""))["input_ids"].tolist()
    return list(row[: len(row) - len(data.encode(["a"])[0].ids)])


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
        outputs: list[torch.Tensor] = []  # [B,H] each

        def keep(_: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output  # [B,T,H]
            if isinstance(states, torch.Tensor) and states.ndim == 3 and states.shape[-1] == self.encoder.hidden_size:
                places = last.to(states.device)
                outputs.append(states[torch.arange(len(places), device=states.device), places].float())

        with ExitStack() as hooks:
            for part in found:
                hooks.enter_context(part.register_forward_hook(keep))
            device = self.read(tokens).hidden.device
        return torch.stack([one.to(device) for one in outputs]).mean(dim=0)  # [B,H]


class TokenPrepending(ModelBaseline):
    """Token Prepending, https://arxiv.org/abs/2412.11556: a token before the text is told of its end.

    From the second layer on it is given the state that the layer below had at the end, so every token of the text sees
    something of what follows it. The authors choose the layers for each model; here it is the first quarter of them. What
    stands at the place before is the tokenizer's end-of-text token.
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
        layers = list(self.encoder.family.decoder(self.encoder.model).layers)
        last = tokens["attention_mask"].sum(dim=1) - 1  # [B]

        def prepend(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]  # [B,T,H], or with more streams between
            rows = torch.arange(len(hidden), device=hidden.device)
            changed = hidden.clone()
            changed[rows, tokens["place"].to(hidden.device)] = hidden[rows, last.to(hidden.device)]
            return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

        with ExitStack() as hooks:
            for layer in layers[1 : 1 + max(1, len(layers) // 4)]:
                hooks.enter_context(layer.register_forward_pre_hook(prepend, with_kwargs=True))
            return super().rows(tokens)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


class EmbedFilter(ModelBaseline):
    """EmbedFilter, https://arxiv.org/abs/2606.07502: the last hidden state in the middle of the unembedding's spectrum.

    `H/2` numbers are left: the directions of the largest and of the smallest singular values, which write frequent tokens
    that say little, are left out, as many of each, as the authors' code does.
    """

    @cached_property
    def basis(self) -> torch.Tensor:
        """The right singular vectors of the middle half of the unembedding's singular values, float32 `[H//2,H]`.

        Raises:
            ValueError: The model's checkpoint has no unembedding, or cannot be read.
        """
        unembedding = self._unembedding()  # [V,H]
        H = unembedding.shape[1]
        squares = torch.zeros(H, H, dtype=torch.float64)
        for rows in torch.split(unembedding, 2**14):
            part = rows.detach().double().cpu()
            squares += part.T @ part
        vectors = torch.linalg.eigh(squares).eigenvectors.flip(1).T  # [H,H], the largest first
        start, kept = (H - H // 2) // 2, H // 2
        return vectors[start : start + kept].float()

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        hidden = super().rows(tokens)  # [B,H]
        return hidden @ self.basis.to(hidden.device).T

    def _unembedding(self) -> torch.Tensor:
        """`W_U [V,H]`, which the model without its head does not have unless it is tied to the embeddings."""
        model, head = self.encoder.model, "lm_head.weight"
        if model.config.get_text_config().tie_word_embeddings:
            weight: torch.Tensor = model.get_input_embeddings().weight
            return weight
        checkpoint = Checkpoint.open(self.source.name_or_path, **self.source.hub.keywords)
        name = next((name for name in sorted(checkpoint.shards, key=len) if name.endswith(head)), None)
        if name is None:
            raise ValueError(
                f"The checkpoint in {self.source.name_or_path} has no {head}, so embed-filter has no unembedding to filter "
                "by; leave that baseline out."
            )
        return read_weight(checkpoint, name)
