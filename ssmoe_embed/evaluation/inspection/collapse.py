"""Router collapse against the spectral router's orthogonality (figure 6 of https://arxiv.org/abs/2605.30992)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """The entries beside the diagonal: `[E,E]` to `[E(E-1)]`."""
    E = len(matrix)
    return matrix[~torch.eye(E, dtype=torch.bool)]


def mean_size(matrix: torch.Tensor) -> float:
    """Mean magnitude of the entries beside the diagonal of `[E,E]`; 0 where there are none."""
    entries = off_diagonal(matrix)
    return float(entries.abs().mean()) if len(entries) else 0.0


def covariances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Covariance of every column of one sample with every column of another.

    Args:
        first: `[N,E]`.
        second: `[N,E]`, of the same `N` tokens.

    Returns:
        float64 `[E,E]`, population covariances.
    """
    a, b = (values.double() - values.double().mean(dim=0) for values in (first, second))
    return a.T @ b / len(a)


def correlations(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The same as correlations; those with a column that never changes are 0."""
    scale = [values.double().std(dim=0, correction=0) for values in (first, second)]  # 2 × [E]
    product = scale[0][:, None] * scale[1][None, :]  # [E,E]
    found = covariances(first, second)
    return torch.where(product > 0, found / product.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


@dataclass(frozen=True)
class Collapse:
    """How alike the experts are to one router; every value is over pairs of different experts.

    Attributes:
        cosine: Mean magnitude of the cosine of two rows: 1 is full collapse.
        centred_cosine: The same after the mean row is taken off, which a softmax over all experts does not see.
        rms_cosine: Root mean square of the cosine.
        random_cosine: What lemma B.1 predicts for `rms_cosine` of random directions: `1/√H`.
        correlation: Mean magnitude of the correlation of two experts' logits over the tokens.
        row_norm: Mean length of a row.
    """

    cosine: float
    centred_cosine: float
    rms_cosine: float
    random_cosine: float
    correlation: float
    row_norm: float


def collapse(rows: torch.Tensor, logits: torch.Tensor) -> Collapse:
    """Measure one router of one layer.

    Args:
        rows: `R` or `W_EV`, `[E,H]`.
        logits: What it says about `N` tokens, `[N,E]`.
    """
    rows = rows.detach().double().cpu()
    found = cosines(rows)  # [E,E]
    pairs = off_diagonal(found)
    return Collapse(
        cosine=mean_size(found),
        centred_cosine=mean_size(cosines(rows - rows.mean(dim=0))),
        rms_cosine=float(pairs.square().mean().sqrt()) if len(pairs) else 0.0,
        random_cosine=1 / math.sqrt(rows.shape[1]),
        correlation=mean_size(correlations(logits, logits)),
        row_norm=float(rows.norm(dim=1).mean()),
    )


def cosines(rows: torch.Tensor) -> torch.Tensor:
    """Cosine of every two rows: `[E,H]` to `[E,E]`."""
    unit = F.normalize(rows, dim=1)
    return unit @ unit.T
