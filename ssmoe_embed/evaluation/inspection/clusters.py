"""How clumped the vectors of texts are (figure 7 of https://arxiv.org/abs/2605.30992), and a map of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.common.lazy import require_package


class Projection(Choice):
    """How vectors are laid out on a plane."""

    TSNE = "tsne"
    """t-SNE, of scikit-learn."""
    UMAP = "umap"
    """UMAP; needs the package umap-learn."""


@dataclass(frozen=True)
class Clusters:
    """How well `B` vectors fall into clusters.

    Attributes:
        silhouette: Of the k-means clusters, -1 to 1: higher is more clumped.
        davies_bouldin: Of the k-means clusters: lower is more clumped.
        by_label: Silhouette of the texts' known labels, where there are any: whether the clumps mean something.
        labels: The k-means cluster of each text, `B` numbers.
        places: Each text's place on the map, `B × 2`.
    """

    silhouette: float
    davies_bouldin: float
    by_label: float | None
    labels: tuple[int, ...]
    places: tuple[tuple[float, float], ...]


def clusters(
    vectors: torch.Tensor,
    count: int = 8,
    *,
    known: Sequence[str] | None = None,
    projection: Projection = Projection.TSNE,
    seed: int = 0,
) -> Clusters:
    """Cluster and map the vectors of texts, each feature standardised first.

    Args:
        vectors: `[B,D]`.
        count: Number of k-means clusters.
        known: Label of each text.
        projection: How the map is made.
        seed: Of k-means and the map.

    Raises:
        ValueError: There are too few texts.
        ImportError: The map's library is not installed.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    check_count(count, len(vectors))
    x = standardised(vectors)
    labels = KMeans(count, n_init=4, random_state=seed).fit_predict(x)
    two_labels = known is not None and 2 <= len(set(known)) < len(x)
    return Clusters(
        silhouette=float(silhouette_score(x, labels)),
        davies_bouldin=float(davies_bouldin_score(x, labels)),
        by_label=float(silhouette_score(x, list(known or ()))) if two_labels else None,
        labels=tuple(int(label) for label in labels),
        places=tuple((float(a), float(b)) for a, b in _map(x, projection, seed)),
    )


def check_count(count: int, texts: int) -> None:
    """Refuse a number of clusters that so many texts cannot fall into.

    Raises:
        ValueError: There are too few texts, or less than two clusters.
    """
    if not 2 <= count < texts:
        raise ValueError(f"{texts} texts do not fall into {count} clusters; pass more texts, or fewer clusters.")


def standardised(vectors: torch.Tensor) -> NDArray[np.float64]:
    """Every feature with mean 0 and variance 1 over the texts, or 0 where it never changes: `[B,D]`."""
    x: NDArray[np.float64] = vectors.double().cpu().numpy()
    x = x - x.mean(axis=0)
    scale = x.std(axis=0)
    return x / np.where(scale > 1e-12 * max(1.0, float(scale.max(initial=0.0))), scale, np.inf)


def _map(x: NDArray[np.float64], projection: Projection, seed: int) -> NDArray[np.float64]:
    """Places `[B,2]`."""
    if projection is Projection.UMAP:
        require_package("umap", "umap-learn")
        from umap import UMAP

        return np.asarray(UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed).fit_transform(x), dtype=np.float64)
    from sklearn.manifold import TSNE

    made = TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="pca", random_state=seed).fit_transform(x)
    return np.asarray(made, dtype=np.float64)
