"""Making, extending and measuring the approximate index beside the stored vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ssmoe_embed.search.approximate import Approximate
from ssmoe_embed.search.kinds import APPROXIMATE, IndexKind
from ssmoe_embed.search.manifest import Manifest, StoredFile
from ssmoe_embed.search.nearest import Allowed, exact_top
from ssmoe_embed.search.vectors import Array, row_blocks

_SEED = 20260
_QUERIES = 200
_TOP = 10
_TAIL = 2_000
"""So many vectors, or this share of the others, are looked at one by one before the approximate index is extended."""
_TAIL_SHARE = 0.02
_GROWN = 4
"""An index that has grown so many times is trained again."""


@dataclass(frozen=True)
class Built:
    """What the manifest says of an approximate index.

    Attributes:
        file: Its file; None for an exact search.
        search: Its kind, search width and measured recall.
    """

    file: StoredFile | None
    search: dict[str, Any]


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


def up_to_date(manifest: Manifest, rows: int, live: int, kind: IndexKind) -> bool:
    """Whether the approximate index of the last generation still serves `rows` vectors, of which `live` are used."""
    wanted = kind.resolved(live)
    if manifest.approximate is None or wanted is IndexKind.FLAT or str(wanted) != manifest.search.get("kind"):
        return wanted is IndexKind.FLAT and manifest.approximate is None
    covered = manifest.approximate.rows
    return rows - covered <= max(_TAIL, _TAIL_SHARE * covered)


def build(
    folder: Path, manifest: Manifest, vectors: Array, live: Array, *, name: str, recall: float, progress: bool
) -> Built:
    """Make or extend the approximate index of all vectors and measure it.

    Args:
        folder: The index's folder.
        manifest: The last generation, with the kind that is wanted.
        vectors: All stored vectors `[R,D]`.
        live: Rows that belong to a document, ascending.
        name: File to write.
        recall: Of the ten nearest, the share to find: the search is made as thorough as that takes.
        progress: Show a progress bar.

    Raises:
        ValueError: FAISS is not installed.
    """
    kind = IndexKind.parse(manifest.kind, "kind").resolved(len(live))
    if kind is IndexKind.FLAT or not len(live):
        return Built(None, {"kind": str(IndexKind.FLAT), "recall": 1.0})
    index = _extendable(folder, manifest, kind, len(vectors))
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
    partial.replace(folder / name)
    index.load(folder / name, mapped=True)  # measured as it will be searched
    measured = tune(index, vectors, live, recall)
    search = {"kind": str(kind), "state": index.state, "trained_rows": trained, **measured}
    return Built(StoredFile.of(folder / name, len(vectors)), search)


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


def _extendable(folder: Path, manifest: Manifest, kind: IndexKind, rows: int) -> Approximate | None:
    """The last generation's index, in memory, if more vectors can be added to it."""
    if manifest.approximate is None or manifest.search.get("kind") != str(kind):
        return None
    if rows > _GROWN * int(manifest.search["trained_rows"]):
        return None
    return open_approximate(folder, manifest, mapped=False)


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
