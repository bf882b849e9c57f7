"""How well a language model predicts documents, one by one, and the difference between two of its routings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 256
"""Tokens read of a document."""
RESAMPLES = 5_000


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of each document.

    Attributes:
        losses: Sum over a document's tokens, in nats, a document each.
        tokens: Tokens predicted in each.
    """

    losses: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def nll(self) -> float:
        """Mean over all tokens, in nats."""
        return sum(self.losses) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(self.nll)


@dataclass(frozen=True)
class Difference:
    """A difference and its interval.

    Attributes:
        value: The difference.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@torch.inference_mode()
def likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, batch_size: int = 32
) -> Likelihood:
    """Read documents, each on its own, after the token that begins a document where the model has one.

    Args:
        model: A causal language model, re-routed or not.
        tokenizer: Its tokenizer.
        documents: Documents of at least two tokens.
        batch_size: Documents a forward pass.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = []
    for document in documents:
        ids = tokenizer(document, truncation=True, max_length=LONGEST - 1)["input_ids"]
        rows.append(torch.tensor(ids if start is None or ids[:1] == [start] else [start, *ids]))
    short = [i for i, row in enumerate(rows) if len(row) < 2]
    if short:
        raise ValueError(f"Document {short[0]} ({documents[short[0]]!r}) has too few tokens; leave it out.")
    losses, tokens = [0.0] * len(rows), [len(row) - 1 for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in batch], batch_first=True).to(model.device)  # [B,T]
        lengths = torch.tensor([len(rows[i]) for i in batch], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()  # [B,T]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()  # [B,T-1,V]
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]  # [B,T-1]
        for i, loss in zip(batch, each.double().sum(dim=1).tolist(), strict=True):
            losses[i] = loss
    return Likelihood(tuple(losses), tuple(tokens))


def difference(
    first: Likelihood, second: Sequence[Likelihood], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """How much more (in nats a token) the second loses than the first, with a paired bootstrap over documents.

    Args:
        first: What to compare with.
        second: The other, one for each of its seeds, all on the same documents: a seed is drawn anew with every resample.
        resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        The difference of the means and its 95 % interval.
    """
    rng = np.random.default_rng(seed)
    tokens = np.array(first.tokens, dtype=np.float64)
    if any(one.tokens != first.tokens for one in second):
        raise ValueError("The two were measured on different documents; measure both again.")
    extra: NDArray[np.float64] = np.array([one.losses for one in second]) - np.array(first.losses)  # [S,B]
    drawn = rng.multinomial(len(tokens), np.full(len(tokens), 1 / len(tokens)), size=resamples)  # [n,B]
    seeds = rng.integers(len(extra), size=(resamples, len(extra)))  # [n,S]
    each = drawn @ extra.T / (drawn @ tokens)[:, None]  # [n,S]
    found = np.take_along_axis(each, seeds, axis=1).mean(axis=1)  # [n]
    low, high = np.quantile(found, [0.025, 0.975])
    return Difference(float(extra.sum(axis=1).mean() / tokens.sum()), float(low), float(high))
