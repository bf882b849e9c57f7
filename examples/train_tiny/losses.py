"""The training losses: distillation into the hidden state, language modelling, and balance of each router.

No similarity loss touches the router logits: the routers learn from the ordinary gradient alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.05


def distillation(hidden: Tensor, targets: Tensor, bank: Tensor, weights: Tensor) -> Tensor:
    """Pull the texts' vectors towards the teacher's.

    The sum of: 10 (1 - cosine); the teacher's distribution over a bank of other texts (KL); finding the own target
    among the batch and the bank (InfoNCE); and the squared error of the batch's cosine matrix.

    Args:
        hidden: `[B,H]` read-out hidden states.
        targets: `[B,H]` unit vectors of the teacher.
        bank: `[M,H]` unit vectors of other texts.
        weights: `[B]`.

    Returns:
        A scalar.
    """
    vectors = functional.normalize(hidden.float(), dim=-1)
    weights = weights / weights.sum()
    cosine = 10 * (weights * (1 - (vectors * targets).sum(-1))).sum()
    mine, theirs = vectors @ bank.T / TEMPERATURE, targets @ bank.T / TEMPERATURE  # [B,M]
    divergence = (torch.softmax(theirs, -1) * (torch.log_softmax(theirs, -1) - torch.log_softmax(mine, -1))).sum(-1)
    among = torch.cat((vectors @ targets.T / TEMPERATURE, mine), dim=1)  # [B,B+M]
    contrast = functional.cross_entropy(among, torch.arange(len(among)), reduction="none")
    matrix = (vectors @ vectors.T - targets @ targets.T).pow(2)  # [B,B]
    return cosine + (weights * (divergence + contrast)).sum() + 20 * (weights * matrix.mean(1)).sum()


def pair_contrast(hidden: Tensor, bank: Tensor, partners: Tensor) -> Tensor:
    """Find each text's partner among the batch and a bank of other texts (InfoNCE).

    Args:
        hidden: `[B,H]` read-out hidden states.
        bank: `[M,H]` unit vectors of other texts.
        partners: `[B]` the partner's row, or -1.

    Returns:
        A scalar, zero when nobody has a partner.
    """
    vectors = functional.normalize(hidden.float(), dim=-1)
    own = torch.eye(len(vectors), dtype=torch.bool)
    scores = torch.cat(((vectors @ vectors.T).masked_fill(own, -1), vectors @ bank.T), dim=1) / TEMPERATURE
    paired = partners >= 0
    total = functional.cross_entropy(scores[paired], partners[paired], reduction="sum")
    return total / paired.sum().clamp_min(1)


def balance(logits: list[Tensor], chosen: list[Tensor], real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the balance loss and the z-loss, each a mean over layers.

    Balance is `E Σ_e f_e p_e` of every single layer (1 when even): `f` the share of choices, `p` the mean probability.
    The library's own function adds the counts of all layers first, so that single layers may collapse.

    Args:
        logits: per layer `[N,E]`.
        chosen: per layer `[N,k]`.
        real: `[N]` false at padding.
    """
    even, size = [], []
    for scores, index in zip(logits, chosen, strict=True):
        scores = scores[real]
        experts = scores.shape[1]
        share = torch.bincount(index[real].reshape(-1), minlength=experts) / index[real].numel()
        even.append(experts * (share * torch.softmax(scores, -1).mean(0)).sum())
        size.append(torch.logsumexp(scores, -1).pow(2).mean())
    return torch.stack(even).mean(), torch.stack(size).mean()


def language_modelling(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the next token, `[M,V]` against `[M]`."""
    return functional.cross_entropy(logits, labels)
