"""Right singular vectors of an expert matrix, held implicitly: projecting on them and summing them, never forming them.

All of them together are the eigenvectors of the Gram matrix `WᵀW` of https://arxiv.org/abs/2605.30992. A spectral
embedding needs only each one's similarity to the router row and the sum of a selection, so the smaller Gram matrix is
reduced to tridiagonal form `T = QᵀGQ` and its eigenvectors stay factored as `Q·Z`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ssmoe_embed.spectral.lapack import (
    Float64,
    add_gram,
    apply_reflectors,
    tridiagonal_eigenvectors,
    tridiagonalise,
)

BLOCK = 512
"""Columns that are widened to float64 at a time, and eigenvectors that are formed at a time."""
TAIL = 1e-5
"""Singular values below this share of the largest are computed again without the larger ones (see `_Refined`).

Measured on 1024x2048 with singular values decaying to 1e-6: the mean of 50 vectors has 1 - cosine 3e-10 without, 5e-12
with 1e-5, 2e-15 with 1e-4, at 1.00, 1.24 and 1.46 times the time; trained and random weights seldom have such a tail.
"""
RANK = 1e-10
"""Singular values below this share of the largest count as zero: their vectors are arbitrary.

Measured: exact zeros come out at up to 1.4e-11; what float32 rounding leaves of a zero is above 1e-8.
"""


class Vectors(Protocol):
    """The usable right singular vectors `v_1..v_m` of a matrix `[M,H]`, in any order and of arbitrary sign."""

    values: torch.Tensor
    """Their singular values, `[m]`."""

    def similarities(self, row: torch.Tensor) -> torch.Tensor:
        """`row·v_j` for a row `[H]`: `[m]`."""

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """`Σ_j w_j v_j` for weights `[m]`: `[H]`."""

    def blocks(self) -> Iterator[torch.Tensor]:
        """All vectors as rows, a block `[b,H]` after the other."""


class DenseVectors:
    """Vectors that are there as the rows of a matrix."""

    def __init__(self, values: torch.Tensor, rows: torch.Tensor) -> None:
        self.values = values  # [m]
        self.rows = rows  # [m,H]

    @classmethod
    def from_svd(cls, matrix: torch.Tensor) -> DenseVectors:
        """All `min(M,H)` vectors as `torch.linalg.svd` returns them in float32: the reference's way."""
        _, values, rows = torch.linalg.svd(matrix.to(torch.float32), full_matrices=False)
        return cls(values, rows)

    @classmethod
    def from_eigh(cls, matrix: torch.Tensor) -> DenseVectors:
        """The vectors by `torch.linalg.eigh` of the smaller Gram matrix in float64, on the matrix's device (a GPU).

        Without `_Refined`'s second look, so singular values below about `1e-7` of the largest are lost in rounding.
        """
        W = matrix.to(torch.float64)  # [M,H]
        tall = W.shape[0] > W.shape[1]
        squares, U = torch.linalg.eigh(W.T @ W if tall else W @ W.T)  # [m], [m,m]
        values = squares.clamp_min(0).sqrt()
        usable = values > values[-1] * 1e-7
        values, U = values[usable], U[:, usable]
        return cls(values, U.T if tall else (U.T @ W) / values[:, None])

    def similarities(self, row: torch.Tensor) -> torch.Tensor:
        """`row·v_j`: `[m]`."""
        return self.rows @ row.to(self.rows)

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """`Σ_j w_j v_j`: `[H]`."""
        return weights.to(self.rows) @ self.rows

    def blocks(self) -> Iterator[torch.Tensor]:
        """The rows, a block after the other."""
        yield from torch.split(self.rows, BLOCK)


class ImplicitVectors:
    """The vectors of a matrix on the CPU, to float64 accuracy, by LAPACK.

    Args:
        matrix: `W [M,H]`, of any floating-point type, on the CPU; widened to float64 a block at a time.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self._tall = matrix.shape[0] > matrix.shape[1]
        self._X = matrix.T if self._tall else matrix  # [n,N], n <= N: Gram matrix XXᵀ of the smaller side
        self._left = _left_vectors(self._X, floor=0.0)
        self.values = torch.from_numpy(self._left.values)

    def similarities(self, row: torch.Tensor) -> torch.Tensor:
        """`r·v_j = (Zᵀ Qᵀ W r)_j / s_j`, or `(Zᵀ Qᵀ r)_j` for a tall matrix: `[m]`."""
        r = row.to("cpu", torch.float64).numpy()  # [H]
        if self._tall:
            return torch.from_numpy(self._left.project(r))
        return torch.from_numpy(self._left.project(_times(self._X, r)) / self._left.values)

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """`Wᵀ Q (Z (w / s))`, or `Q (Z w)` for a tall matrix: `[H]`."""
        return self._sum(weights.to(torch.float64).numpy()[:, None])[0]

    def blocks(self) -> Iterator[torch.Tensor]:
        """The vectors, formed a block after the other."""
        m = len(self._left.values)
        for start in range(0, m, BLOCK):
            size = min(BLOCK, m - start)
            yield self._sum(np.eye(m, size, -start))

    def _sum(self, weights: Float64) -> torch.Tensor:
        """`[m,b]` weights to `b` sums `[b,H]`."""
        if self._tall:
            return torch.from_numpy(np.ascontiguousarray(self._left.combine(weights).T))
        left = self._left.combine(weights / self._left.values[:, None])  # [n,b]
        return torch.from_numpy(_transposed_times(left, self._X))


class _Left(Protocol):
    """Left singular vectors `U = [u_1..u_m]` of `X [n,N]`, held in some form."""

    values: Float64  # [m]

    def project(self, y: Float64) -> Float64:
        """`Uᵀ y`: `[n]` to `[m]`."""

    def combine(self, weights: Float64) -> Float64:
        """`U c`: `[m,b]` to `[n,b]`."""


class _Reflected:
    """`U = Q·Z`: Householder reflectors of the tridiagonal reduction times the tridiagonal matrix's eigenvectors."""

    def __init__(self, values: Float64, reduced: Float64, factors: Float64, Z: Float64) -> None:
        self.values = values  # [m]
        self._reduced, self._factors, self._Z = reduced, factors, Z  # [n,n] and [n-1] hold Q; [n,m]

    def project(self, y: Float64) -> Float64:
        y = y[:, None].copy()  # [n,1]
        apply_reflectors("T", self._reduced, self._factors, y)
        return self._Z.T @ y[:, 0]  # [n] -> [m]

    def combine(self, weights: Float64) -> Float64:
        return self._reflected(self._Z @ weights)  # [m,b] -> [n,b]

    def vectors(self) -> Float64:
        """`U` itself: `[n,m]`."""
        return self._reflected(self._Z)

    def part(self, usable: NDArray[np.bool_]) -> _Reflected:
        """The same with only some of the vectors."""
        if usable.all():
            return self
        return _Reflected(self.values[usable], self._reduced, self._factors, self._Z[:, usable])

    def _reflected(self, columns: Float64) -> Float64:
        columns = columns.copy(order="F")
        apply_reflectors("N", self._reduced, self._factors, columns)
        return columns


class _Refined:
    """Vectors of large singular values as they are, the others (the tail) as `basis` times those of `basisᵀ X`.

    Rounding in a Gram matrix is relative to its *largest* eigenvalue, so a direction 1e-6 times weaker is blurred in
    its 1e-12 times smaller one. The tail's subspace is still right: within it the larger values are gone, so a second
    decomposition there is as sharp as the first was at the top.
    """

    def __init__(self, head: _Left, basis: Float64, tail: _Left) -> None:
        self.values = np.concatenate([head.values, tail.values])  # [m]
        self._head, self._basis, self._tail = head, basis, tail  # basis [n,k]

    def project(self, y: Float64) -> Float64:
        return np.concatenate([self._head.project(y), self._tail.project(self._basis.T @ y)])

    def combine(self, weights: Float64) -> Float64:
        head = len(self._head.values)
        return self._head.combine(weights[:head]) + self._basis @ self._tail.combine(weights[head:])


def _left_vectors(X: torch.Tensor, floor: float) -> _Left:
    """The left singular vectors of `X [n,N]` whose singular value is above `floor` and above rounding."""
    whole = _factorised(_gram(X))
    top = whole.values.max(initial=0.0)
    floor = max(floor, RANK * top)
    tail = whole.values <= TAIL * top
    if not tail.any() or top <= floor:
        return whole.part(whole.values > floor)
    basis = whole.part(tail).vectors()  # [n,k]
    rest = torch.from_numpy(_transposed_times(basis, X))  # [k,N]
    return _Refined(whole.part(~tail), basis, _left_vectors(rest, floor))


def _factorised(gram: Float64) -> _Reflected:
    """Singular values and `Q·Z` from a Gram matrix `[n,n]` (its lower triangle), which is overwritten."""
    diagonal, off, factors = tridiagonalise(gram)
    squares, Z = tridiagonal_eigenvectors(diagonal, off)  # [n], [n,n]
    return _Reflected(np.sqrt(squares.clip(0.0)), gram, factors, Z)


def _gram(X: torch.Tensor) -> Float64:
    """`XXᵀ [n,n]` in float64, lower triangle."""
    gram = np.zeros((len(X), len(X)), order="F")
    for block in torch.split(X, BLOCK, dim=1):  # [n,b]
        add_gram(block.to(torch.float64).numpy(), gram)
    return gram


def _times(X: torch.Tensor, y: Float64) -> Float64:
    """`X y`: `[n,N]·[N]` to `[n]`."""
    blocks = zip(torch.split(X, BLOCK, dim=1), np.split(y, range(BLOCK, len(y), BLOCK)), strict=True)
    return np.sum([block.to(torch.float64).numpy() @ part for block, part in blocks], axis=0)


def _transposed_times(left: Float64, X: torch.Tensor) -> Float64:
    """`leftᵀ X`: `[n,b]·[n,N]` to `[b,N]`."""
    out = np.empty((left.shape[1], X.shape[1]))
    for start in range(0, X.shape[1], BLOCK):
        out[:, start : start + BLOCK] = left.T @ X[:, start : start + BLOCK].to(torch.float64).numpy()
    return out


def own_parts(
    experts: Callable[[int], Sequence[torch.Tensor]], count: int, rank: int
) -> Callable[[int], Sequence[torch.Tensor]]:
    """What reads an expert's matrices `[I,H]` without the leading part, of that rank, of the mean of all experts'.

    Args:
        experts: Given an expert, what reads its matrices.
        count: `E`.
        rank: Of the common part; 0 for none.

    Raises:
        ValueError: The rank is above the matrices'.
    """
    if rank == 0:
        return experts
    sums = [matrix.double().cpu() for matrix in experts(0)]
    for expert in range(1, count):
        for total, matrix in zip(sums, experts(expert), strict=True):
            total += matrix.cpu()
    common = []
    for total in sums:
        if rank >= min(total.shape):
            raise ValueError(f"exclude_common={rank} would leave nothing of matrices of shape {tuple(total.shape)}.")
        left, values, right = torch.linalg.svd(total / count, full_matrices=False)
        common.append(((left[:, :rank] * values[:rank]) @ right[:rank]).float())
    return lambda expert: [
        one.float() - shared.to(one.device) for one, shared in zip(experts(expert), common, strict=True)
    ]
