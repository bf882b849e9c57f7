"""The nearest of the stored vectors: exactly, or by an approximate index whose candidates are scored exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssmoe_embed.search.approximate import Approximate
from ssmoe_embed.search.vectors import Array, row_blocks

_FEW = 0.05
"""Where fewer than this share of the rows is allowed, looking at all of those is faster than an approximate index."""
NOTHING = -1
"""The row that stands where fewer than `k` were found."""


@dataclass(frozen=True)
class Allowed:
    """Which rows may be found.

    Attributes:
        rows: Ascending, int64.
        mask: bool `[R]` over all rows.
    """

    rows: Array
    mask: Array

    @classmethod
    def of(cls, rows: Array, total: int) -> Allowed:
        """From the rows themselves."""
        mask = np.zeros(total, dtype=bool)
        mask[rows] = True
        return cls(rows, mask)


def exact_top(
    vectors: Array, queries: Array, k: int, allowed: Allowed | None = None, first: int = 0
) -> tuple[Array, Array]:
    """The `k` rows of the largest dot products.

    Args:
        vectors: `[R,D]`, memory-mapped or not.
        queries: float32 `[Q,D]`.
        k: How many.
        allowed: Which rows may be found; None for all.
        first: Look from this row on.

    Returns:
        Rows int64 `[Q,k]` and scores float32 `[Q,k]`, best first; where there are fewer, `NOTHING` and -inf.
    """
    best_rows = np.full((len(queries), k), NOTHING, dtype=np.int64)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    wanted = np.ascontiguousarray(queries, dtype=np.float32)
    for rows, block in _blocks(vectors, allowed, first):
        # NumPy's product of one query, or few, takes half as long as PyTorch's or less
        scores = wanted @ block.T  # [Q,D] × [D,n] → [Q,n]
        if k < len(rows):
            places = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)  # of equals the first comes first
            scores, found = np.take_along_axis(scores, places, 1), rows[places]
        else:
            found = np.broadcast_to(rows, scores.shape)
        all_rows = np.concatenate([best_rows, found], axis=1)  # [Q,k+n]
        all_scores = np.concatenate([best, scores], axis=1)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
        best_rows, best = np.take_along_axis(all_rows, order, 1), np.take_along_axis(all_scores, order, 1)
    return best_rows, best


def _blocks(vectors: Array, allowed: Allowed | None, first: int) -> Iterator[tuple[Array, Array]]:
    """Rows `[n]` and their vectors float32 `[n,D]`, so many at a time that memory stays small."""
    size = row_blocks(vectors.shape[1])
    if allowed is None:
        for start in range(first, len(vectors), size):
            block = np.asarray(vectors[start : start + size], dtype=np.float32)
            yield np.arange(start, start + len(block)), block
        return
    rows = allowed.rows[np.searchsorted(allowed.rows, first) :]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, np.asarray(vectors[part], dtype=np.float32)


class Nearest:
    """Search over the vectors of one generation."""

    def __init__(self, vectors: Array, approximate: Approximate | None) -> None:
        """Put vectors `[R,D]` and the approximate index of the first of them together."""
        self.vectors = vectors
        self.approximate = approximate

    def top(self, queries: Array, k: int, allowed: Allowed | None = None) -> tuple[Array, Array]:
        """The `k` nearest rows, as `exact_top` gives them, with float64 scores.

        Args:
            queries: Unit vectors `[Q,D]`.
            k: How many.
            allowed: Which rows may be found; None for all.
        """
        few = allowed is not None and len(allowed.rows) <= max(k, _FEW * len(self.vectors))
        if self.approximate is None or few:
            rows, _ = exact_top(self.vectors, queries, k, allowed)
            return self._scored(queries, rows, k)
        covered = self.approximate.covered
        found = [self.approximate.candidates(queries, k, None if allowed is None else allowed.mask[:covered])]
        if covered < len(self.vectors):
            found.append(exact_top(self.vectors, queries, k, allowed, first=covered)[0])
        return self._scored(queries, np.concatenate(found, axis=1), k)

    def _scored(self, queries: Array, rows: Array, k: int) -> tuple[Array, Array]:
        """The best `k` of candidate rows `[Q,n]` by their exact scores."""
        scores = np.full(rows.shape, -np.inf)
        for number, (query, row) in enumerate(zip(queries, rows, strict=True)):
            there = row != NOTHING
            scores[number, there] = dot(self.vectors[row[there]], query)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def dot(vectors: Array, query: Any) -> Array:
    """Dot products of stored vectors `[n,D]` with a query `[D]`, in float64."""
    return np.einsum("nd,d->n", vectors.astype(np.float64), np.asarray(query, dtype=np.float64))
