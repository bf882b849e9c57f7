"""How much the experts of a layer share their dominant directions (SD-MoE, https://arxiv.org/abs/2602.12556)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ssmoe_embed.evaluation.inspection.collapse import mean_size, off_diagonal

DIRECTIONS = 8
"""Directions that count as an expert's dominant subspace, unless told otherwise."""


@dataclass(frozen=True)
class SubspaceOverlap:
    """The overlap of the experts' dominant subspaces in one layer, for one kind of matrix.

    Attributes:
        mean: Mean over pairs of experts of the mean squared cosine of the principal angles: 0 disjoint, 1 the same.
        largest: The largest of a pair.
        chance: What random subspaces of that size have on average: `k/H`.
        leading: Mean magnitude of the cosine of two experts' first directions.
        directions: `k`.
        pairs: The overlap of every two experts, `[E,E]`; a row an expert.
    """

    mean: float
    largest: float
    chance: float
    leading: float
    directions: int
    pairs: tuple[tuple[float, ...], ...]


def dominant_directions(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The right singular vectors of the largest singular values.

    Args:
        matrix: `[I,H]`, rows in hidden space.
        count: `k`; at most `min(I,H)` are given.

    Returns:
        float64 `[k,H]`, the largest first.
    """
    W = matrix.detach().double().cpu()
    tall = W.shape[0] > W.shape[1]
    squares, vectors = torch.linalg.eigh(W.T @ W if tall else W @ W.T)  # rising; [m], [m,m]
    kept = min(count, len(squares))
    U = vectors[:, -kept:].flip(1)  # [m,k]
    if tall:
        return U.T  # [k,H]
    return (U.T @ W) / squares[-kept:].flip(0).clamp_min(torch.finfo(torch.float64).tiny).sqrt()[:, None]  # [k,H]


def subspace_overlaps(
    matrices: Callable[[int], Sequence[torch.Tensor]], experts: int, count: int = DIRECTIONS
) -> list[SubspaceOverlap]:
    """The overlap in one layer, for each kind of matrix; the matrices of one expert are alive at a time.

    Args:
        matrices: Reads an expert's matrices `[I,H]`, given its index.
        experts: `E`.
        count: `k`.
    """
    bases: list[list[torch.Tensor]] = []
    for expert in range(experts):
        bases.append([dominant_directions(matrix, count).float() for matrix in matrices(expert)])
    return [_overlap(torch.stack(kind)) for kind in zip(*bases, strict=True)]


def _overlap(bases: torch.Tensor) -> SubspaceOverlap:
    """The overlap of orthonormal bases `[E,k,H]`."""
    E, k, H = bases.shape
    flat = bases.reshape(E * k, H)
    squares = (flat @ flat.T).square().reshape(E, k, E, k)  # squared cosines of single directions
    pairs = squares.sum(dim=(1, 3)) / k  # [E,E]
    apart = off_diagonal(pairs)
    return SubspaceOverlap(
        mean=mean_size(pairs),
        largest=float(apart.max()) if len(apart) else 0.0,
        chance=k / H,
        leading=mean_size(squares[:, 0, :, 0].sqrt()),
        directions=k,
        pairs=tuple(tuple(row) for row in pairs.tolist()),
    )
