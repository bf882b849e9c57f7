"""The nearest of the stored vectors, exactly or by an approximate index; making, extending and measuring that index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ssmoe_embed.search.kinds import APPROXIMATE, Approximate, IndexKind
from ssmoe_embed.search.manifest import Manifest, StoredFile, file_hash
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
        """The `k` nearest rows to unit vectors `[Q,D]`, of those allowed, as `exact_top` gives them; float64 scores."""
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


_SEED = 20260
_QUERIES = 200
_TOP = 10
_TAIL = 2_000
"""So many vectors, or this share of the others, are looked at one by one before the approximate index is extended."""
_TAIL_SHARE = 0.02
_GROWN = 4
"""An index that has grown so many times is trained again."""


def open_approximate(folder: Path, manifest: Manifest, *, mapped: bool = True) -> Approximate | None:
    """The approximate index of a generation, if it has one.

    Raises:
        DamagedIndexError: Its file is missing, cut short or no index of that many vectors.
    """
    stored, search = manifest.approximate, manifest.search
    if stored is None:
        return None
    kind = APPROXIMATE[IndexKind.parse(search["kind"], "kind")]
    index = kind(manifest.dimension, (search["width"], search["oversample"]), search["state"])
    index.load(stored.check(folder), mapped=mapped)
    return index


def up_to_date(manifest: Manifest, rows: int, live: int) -> bool:
    """Whether the approximate index of the last generation still serves `rows` vectors, of which `live` are used."""
    wanted = IndexKind.parse(manifest.kind, "kind").resolved(live)
    if manifest.approximate is None or wanted is IndexKind.FLAT or str(wanted) != manifest.search.get("kind"):
        return wanted is IndexKind.FLAT and manifest.approximate is None
    covered = manifest.approximate.rows
    return rows - covered <= max(_TAIL, _TAIL_SHARE * covered)


def build(
    folder: Path, manifest: Manifest, vectors: Array, live: Array, *, name: str, recall: float, progress: bool
) -> Manifest:
    """Make or extend the approximate index of all vectors `[R,D]` and measure it.

    Args:
        folder: The index's folder.
        manifest: The last generation, with the kind that is wanted.
        vectors: All stored vectors.
        live: Rows that belong to a document, ascending.
        name: File to write.
        recall: Of the ten nearest, the share to find: the search is made as thorough as that takes.
        progress: Show a progress bar.

    Returns:
        The manifest with the file and what was measured.

    Raises:
        ValueError: FAISS is not installed.
    """
    kind = IndexKind.parse(manifest.kind, "kind").resolved(len(live))
    if kind is IndexKind.FLAT or not len(live):
        return replace(manifest, approximate=None, search={"kind": str(IndexKind.FLAT), "recall": 1.0})
    extendable = manifest.approximate is not None and manifest.search.get("kind") == str(kind)
    grown = extendable and len(vectors) > _GROWN * int(manifest.search["trained_rows"])
    index = open_approximate(folder, manifest, mapped=False) if extendable and not grown else None
    if index is None:
        index = APPROXIMATE[kind](manifest.dimension)
        index.train(_sample(vectors, live, index.sample_rows), len(vectors))
        trained = len(vectors)
    else:
        trained = int(manifest.search["trained_rows"])
    index.extend(_progress(vectors, index.covered, kind, progress))
    partial = folder / f".{name}.part"
    index.save(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    path = partial.replace(folder / name)
    index.load(path, mapped=True)  # measured as it will be searched
    measured = tune(index, vectors, live, recall)
    search = {"kind": str(kind), "state": index.state, "trained_rows": trained, **measured}
    stored = StoredFile(name, path.stat().st_size, file_hash(path), len(vectors))
    return replace(manifest, approximate=stored, search=search)


def tune(index: Approximate, vectors: Array, live: Array, goal: float) -> dict[str, Any]:
    """Make the search as thorough as `goal` takes, and say what it then finds.

    The queries are a sample of the stored vectors, each of which leaves itself out.
    """
    rng = np.random.default_rng(_SEED)
    chosen = np.sort(rng.choice(live, min(_QUERIES, len(live)), replace=False))
    queries = np.asarray(vectors[chosen], dtype=np.float32)
    allowed = None if len(live) == len(vectors) else Allowed.of(live, len(vectors))
    truth = _without(exact_top(vectors, queries, _TOP + 1, allowed)[0], chosen)
    found = 0.0
    for rung in index.rungs:
        index.rung = rung
        rows = index.candidates(queries, _TOP + 1, None if allowed is None else allowed.mask[: index.covered])
        found = recall(_without(_rescored(vectors, queries, rows), chosen), truth)
        if found >= goal:
            break
    width, oversample = index.rung
    return {"width": width, "oversample": oversample, "recall": round(found, 4), "queries": len(chosen), "goal": goal}


def recall(found: Array, truth: Array) -> float:
    """The mean share of the true rows `[Q,k]` that were found, where -1 is no row."""
    shares = []
    for mine, real in zip(found, truth, strict=True):
        wanted = set(real[real >= 0].tolist())
        shares.append(len(wanted & set(mine.tolist())) / len(wanted) if wanted else 1.0)
    return float(np.mean(shares))


def _rescored(vectors: Array, queries: Array, rows: Array) -> Array:
    """The best of candidate rows `[Q,n]`, as a search would give them."""
    kept = np.full((len(rows), _TOP + 1), -1, dtype=np.int64)
    for number, (query, row) in enumerate(zip(queries, rows, strict=True)):
        there = row[row >= 0]
        best = np.argsort(-(np.asarray(vectors[there], dtype=np.float32) @ query), kind="stable")[: _TOP + 1]
        kept[number, : len(best)] = there[best]
    return kept


def _without(rows: Array, own: Array) -> Array:
    """Rows `[Q,k+1]` with each query's own row, or else the last, left out: `[Q,k]`."""
    kept = np.empty((len(rows), rows.shape[1] - 1), dtype=np.int64)
    for number, (row, mine) in enumerate(zip(rows, own, strict=True)):
        kept[number] = row[row != mine][: rows.shape[1] - 1]
    return kept


def _sample(vectors: Array, live: Array, size: int) -> Array:
    """Some of the vectors, float32, for training."""
    chosen = np.random.default_rng(_SEED).choice(live, min(size, len(live)), replace=False)
    return np.asarray(vectors[np.sort(chosen)], dtype=np.float32)


def _progress(vectors: Array, first: int, kind: IndexKind, progress: bool) -> Iterator[Array]:
    """The vectors from a row on, block by block, with a bar."""
    size = min(row_blocks(vectors.shape[1]), 16_384)
    with tqdm(total=len(vectors) - first, desc=f"Index ({kind})", unit="vector", disable=not progress) as bar:
        for start in range(first, len(vectors), size):
            block = vectors[start : start + size]
            yield block
            bar.update(len(block))
