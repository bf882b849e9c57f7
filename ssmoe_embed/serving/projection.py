"""Vectors on a plane, in groups that have names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from ssmoe_embed.common.choices import Choice

_SEED = 0
_COMPONENTS = 50
"""Dimensions kept of each vector before t-SNE, by principal components: less noise, and many times faster."""
_FEWEST = 5
"""With fewer points neighbourhoods mean nothing, and principal components are drawn."""


class MapMethod(Choice):
    """How vectors are laid on a plane."""

    UMAP = "umap"
    """UMAP, https://arxiv.org/abs/1802.03426; needs umap-learn."""
    TSNE = "tsne"
    """t-SNE, https://jmlr.org/papers/v9/vandermaaten08a.html"""
    PCA = "pca"
    """The first two principal components."""

    @classmethod
    def best(cls) -> MapMethod:
        """UMAP where it is installed, else t-SNE."""
        return cls.UMAP if find_spec("umap") else cls.TSNE


def project(vectors: np.ndarray[Any, Any], method: MapMethod) -> np.ndarray[Any, Any]:
    """Points on a plane, in `[-1, 1]`, near each other where the vectors point in like directions.

    The same vectors give the same points, by a fixed seed.

    Args:
        vectors: `[n,D]`.
        method: How.

    Returns:
        float32 `[n,2]`.
    """
    rows = np.asarray(vectors, dtype=np.float32)  # [n,D]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if len(rows) < 2 or not np.ptp(rows, axis=0).any():  # one text, however often
        return np.zeros((len(rows), 2), dtype=np.float32)
    few = len(rows) < _FEWEST
    points = _pca(rows, 2) if few or method is MapMethod.PCA else _neighbours(rows, method)
    points = points - (points.min(axis=0) + points.max(axis=0)) / 2
    return (points / np.maximum(np.abs(points).max(axis=0), 1e-12)).astype(np.float32)


def _neighbours(rows: np.ndarray[Any, Any], method: MapMethod) -> np.ndarray[Any, Any]:
    """Points `[n,2]` that keep neighbourhoods."""
    if method is MapMethod.UMAP:
        from umap import UMAP

        neighbours = min(15, len(rows) - 1)
        return UMAP(n_neighbors=neighbours, metric="cosine", random_state=_SEED, n_jobs=1).fit_transform(rows)
    from sklearn.manifold import TSNE

    reduced = _pca(rows, _COMPONENTS)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # one thread: sums in another order would move the points from run to run
    return TSNE(perplexity=perplexity, init="pca", random_state=_SEED, n_jobs=1).fit_transform(reduced)


def _pca(rows: np.ndarray[Any, Any], components: int) -> np.ndarray[Any, Any]:
    """The first principal components `[n,components]`, or as many as there are, but at least two columns."""
    from sklearn.decomposition import PCA

    most = min(components, *rows.shape)
    found = (
        PCA(most, svd_solver="full" if most <= 2 else "auto", random_state=_SEED).fit_transform(rows) if most else rows
    )
    return np.pad(found[:, :most], ((0, 0), (0, max(0, min(components, 2) - most))))


def group(vectors: np.ndarray[Any, Any], texts: Sequence[str], most: int = 8) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Groups of vectors, each named by words that tell its texts from the others'.

    Args:
        vectors: `[n,D]`.
        texts: Their texts.
        most: The most groups to make.

    Returns:
        int64 `[n]`, the group of each vector, and the groups' names.
    """
    from sklearn.cluster import KMeans

    rows = np.asarray(vectors, dtype=np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    count = min(most, len(np.unique(rows, axis=0)), max(1, len(rows) // 4))
    if count < 2:
        return np.zeros(len(rows), dtype=np.int64), ["all documents"]
    groups = KMeans(count, random_state=_SEED, n_init=4).fit_predict(rows).astype(np.int64)
    return groups, _names(groups, texts, count)


def _names(groups: np.ndarray[Any, Any], texts: Sequence[str], count: int) -> list[str]:
    """Three words for each group: those with the largest mean TF-IDF in it beyond that in all texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b", max_features=20_000)
    try:
        table = words.fit_transform(texts)
    except ValueError:  # no words at all, as in numbers or symbols
        return [f"group {number + 1}" for number in range(count)]
    names = words.get_feature_names_out()
    overall = np.asarray(table.mean(axis=0)).ravel()
    result = []
    for number in range(count):
        inside = np.asarray(table[groups == number].mean(axis=0)).ravel() - overall
        best = [str(names[column]) for column in np.argsort(-inside, kind="stable")[:3] if inside[column] > 0]
        result.append(" · ".join(best) or f"group {number + 1}")
    return result
