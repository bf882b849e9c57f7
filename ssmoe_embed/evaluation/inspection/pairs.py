"""Pairs of different experts in an `[E,E]` matrix: the entries beside its diagonal."""

from __future__ import annotations

import torch


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
