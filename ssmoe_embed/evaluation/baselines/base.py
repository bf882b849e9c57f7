"""The frame of all training-free embeddings of a base model, which stand in the files beside this one.

All run the model under its own routers. They take the template of the evaluated model, or the one that is asked for, except
for those that are a template.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.encoder import Encoder, Reading
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.embedding.tokenization import DataTokenizer

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
