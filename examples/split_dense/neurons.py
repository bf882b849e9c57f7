"""Which neurons of a dense feed-forward layer every token uses, and which form an expert together."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def shared_neurons(mass: Tensor, count: int) -> Tensor:
    """The neurons with the largest activation mass, in rising order.

    Args:
        mass: `[I]`: mean absolute activation times the norm of the neuron's column of `down_proj`.
        count: How many.
    """
    return mass.topk(count).indices.sort().values


def balanced_clusters(features: Tensor, clusters: int, *, seed: int, rounds: int = 10) -> Tensor:
    """Groups of equal size of what is active together: k-means, and at its end the best assignment to groups of equal size.

    Args:
        features: `[N, D]`, a row per neuron; compared by cosine.
        clusters: Number of groups, a divisor of `N`.
        seed: Of the rows that the first centres are.
        rounds: Of k-means.

    Returns:
        `[clusters, N / clusters]`: rows of each group, rising.

    Raises:
        ValueError: The rows cannot be divided evenly.
    """
    rows = len(features)
    if rows % clusters:
        raise ValueError(f"{rows} neurons cannot be divided into {clusters} experts of equal size; change --experts.")
    points = torch.nn.functional.normalize(features.float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    centres = points[_spread(points, clusters, generator)]
    for _ in range(rounds):
        nearest = (points @ centres.T).argmax(1)
        centres = torch.nn.functional.normalize(torch.zeros_like(centres).index_add_(0, nearest, points), dim=1)
    seats = (points @ centres.T).repeat_interleave(rows // clusters, dim=1).numpy()
    labels = torch.from_numpy(linear_sum_assignment(seats, maximize=True)[1]) // (rows // clusters)
    return torch.stack([(labels == cluster).nonzero()[:, 0] for cluster in range(clusters)])


def _spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows that are far apart: each drawn in proportion to its squared distance to the nearest before it."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = 1 - points @ points[chosen[0]]
    for _ in range(count - 1):
        chosen.append(int(torch.multinomial(nearest.clamp(min=1e-9), 1, generator=generator)))
        nearest = torch.minimum(nearest, 1 - points @ points[chosen[-1]])
    return torch.tensor(chosen)
