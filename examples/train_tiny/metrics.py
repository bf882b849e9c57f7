"""Held-out measurements: agreement with the teacher, definition retrieval, perplexity, expert loads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from fast_model import Block, FastOlmoe, Output
from packing import IGNORED, Batch, Packer, Templates, TokenStore
from scipy.stats import spearmanr
from tokenizer import EOS_ID
from torch.nn import functional

LENGTH = 256
LAYOUT = (Block(16, LENGTH),)
ROWS = range(16)


def pack(pieces: Sequence[np.ndarray]) -> Iterator[Batch]:
    """Pack token sequences into batches, the longest first; `Batch.texts` holds their numbers."""
    packer = Packer(LAYOUT)
    for number in sorted(range(len(pieces)), key=lambda i: -len(pieces[i])):
        if not packer.add_text(pieces[number], ROWS, number, 1.0):
            yield packer.batch()
            packer = Packer(LAYOUT)
            packer.add_text(pieces[number], ROWS, number, 1.0)
    if packer.texts:
        yield packer.batch()


@torch.no_grad()
def encode(fast: FastOlmoe, templates: Templates, pieces: Sequence[np.ndarray], template: int) -> np.ndarray:
    """Return the unit vectors `[texts,H]` of token sequences, read out in one template."""
    vectors = np.zeros((len(pieces), fast.config.hidden_size), np.float32)
    for batch in pack([templates.apply(piece, template, LENGTH) for piece in pieces]):
        hidden = fast.forward(batch.ids, batch.segments, batch.layout).hidden[batch.readout]
        vectors[batch.texts] = functional.normalize(hidden, dim=-1).numpy()
    return vectors


def add_choices(loads: list[np.ndarray], out: Output, batch: Batch) -> None:
    """Count which experts the real tokens of a batch chose, `[E]` for each layer."""
    real = batch.segments >= 0
    for load, chosen in zip(loads, out.chosen, strict=True):
        load += np.bincount(chosen[real].reshape(-1).numpy(), minlength=len(load))


def no_choices(fast: FastOlmoe) -> list[np.ndarray]:
    """Return a zero count for each layer and expert."""
    return [np.zeros(fast.config.num_experts, np.int64) for _ in range(fast.config.num_hidden_layers)]


@torch.no_grad()
def text_loads(fast: FastOlmoe, templates: Templates, pieces: Sequence[np.ndarray], template: int) -> list[np.ndarray]:
    """Return how often each layer chose each expert on short texts."""
    loads = no_choices(fast)
    for batch in pack([templates.apply(piece, template, LENGTH) for piece in pieces]):
        add_choices(loads, fast.forward(batch.ids, batch.segments, batch.layout), batch)
    return loads


def similarity_correlation(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Spearman correlation of all pairwise cosines with the teacher's."""
    upper = np.triu_indices(len(mine), 1)
    return float(spearmanr((mine @ mine.T)[upper], (theirs @ theirs.T)[upper]).statistic)


def retrieval(queries: np.ndarray, documents: np.ndarray) -> dict[str, float]:
    """Share of queries whose own document (same row) is among the 1 and 10 nearest."""
    scores = queries @ documents.T
    rank = (scores > np.diag(scores)[:, None]).sum(1)
    return {"R@1": float((rank < 1).mean()), "R@10": float((rank < 10).mean())}


@torch.no_grad()
def language_model_loss(fast: FastOlmoe, prose: TokenStore, tokens: int) -> tuple[float, list[np.ndarray]]:
    """Cross-entropy per token on held-out prose, and how often each layer chose each expert.

    Every passage ends in EOS; long ones are cut into pieces of 256 tokens that see only themselves.
    """
    total, count, index = 0.0, 0, 0
    loads = no_choices(fast)
    while count < tokens and index < len(prose):
        packer = Packer(LAYOUT)
        room = True
        while room and index < len(prose):
            piece = np.append(prose.text(index).astype(np.int64), EOS_ID)
            room = all(
                packer.add(piece[start : start + LENGTH], ROWS) is not None for start in range(0, len(piece), LENGTH)
            )
            index += 1
        batch = packer.batch()
        out = fast.forward(batch.ids, batch.segments, batch.layout)
        asked = batch.labels != IGNORED
        logits = fast.next_token_logits(out.hidden[asked])
        total += float(functional.cross_entropy(logits, batch.labels[asked], reduction="sum"))
        count += int(asked.sum())
        add_choices(loads, out, batch)
    return total / max(count, 1), loads


def describe_load(load: np.ndarray) -> dict[str, float]:
    """Entropy of the choices relative to even use, and the least and most loaded expert relative to the mean."""
    share = load / load.sum()
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum() / math.log(len(share))
    return {"entropy": float(entropy), "min": float(share.min() * len(share)), "max": float(share.max() * len(share))}
