"""Rows to put in the place of `W_EV`: each function makes one layer's `[E,H]`, float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from ssmoe_embed.spectral.decomposition import ImplicitVectors
from ssmoe_embed.spectral.settings import SpectralSettings

Experts = Callable[[int], Sequence[torch.Tensor]]
"""Reads an expert's matrices `[I,H]`, given its index."""


def random_orthonormal(spectral: torch.Tensor, seed: int) -> torch.Tensor:
    """Random orthonormal directions, as long as the spectral rows; more rows than `H` are orthonormal `H` at a time."""
    E, H = spectral.shape
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for start in range(0, E, H):
        gaussian = torch.randn(H, min(H, E - start), generator=generator, dtype=torch.float64)
        blocks.append(torch.linalg.qr(gaussian).Q.T)  # [≤H,H]
    return as_long_as(torch.cat(blocks).float(), spectral)


def permuted(spectral: torch.Tensor, seed: int) -> torch.Tensor:
    """Every expert gets another one's row: a random cycle through all of them."""
    order = torch.randperm(len(spectral), generator=torch.Generator().manual_seed(seed))
    rows = torch.empty_like(spectral)
    rows[order] = spectral[order.roll(1)]
    return rows


def as_long_as(rows: torch.Tensor, spectral: torch.Tensor) -> torch.Tensor:
    """Rows in their own directions with the lengths of the spectral ones: `[E,H]`."""
    return F.normalize(rows.float(), dim=1) * spectral.norm(dim=1, keepdim=True)


def mean_rows(experts: Experts, spectral: torch.Tensor) -> torch.Tensor:
    """The mean row of each expert's matrices, as long as the spectral rows."""
    means = [
        torch.stack([one.float().mean(dim=0).cpu() for one in experts(i)]).mean(dim=0) for i in range(len(spectral))
    ]
    return as_long_as(torch.stack(means), spectral)


def least_similar(experts: Experts, router: torch.Tensor, settings: SpectralSettings) -> torch.Tensor:
    """The mean of the eigenvectors that are *least* similar to the router row, signs aligned."""

    def weights(vectors: ImplicitVectors, similarities: torch.Tensor) -> torch.Tensor:
        signs = torch.where(similarities < 0, -1.0, 1.0).to(similarities)
        kept = similarities.abs().argsort(stable=True)[: settings.count(len(vectors.values))]
        return torch.zeros_like(signs).index_put((kept,), signs[kept] / len(kept))

    return _combined(experts, router, weights)


def random_signs(experts: Experts, router: torch.Tensor, settings: SpectralSettings, seed: int) -> torch.Tensor:
    """As the spectral router, but with every eigenvector's sign thrown by a coin before the most similar are kept."""
    generator = torch.Generator().manual_seed(seed)

    def weights(vectors: ImplicitVectors, similarities: torch.Tensor) -> torch.Tensor:
        coins = torch.randint(2, (len(similarities),), generator=generator).to(similarities) * 2 - 1
        kept = (coins * similarities).argsort(descending=True, stable=True)[: settings.count(len(vectors.values))]
        return torch.zeros_like(coins).index_put((kept,), coins[kept] / len(kept))

    return _combined(experts, router, weights)


def _combined(
    experts: Experts, router: torch.Tensor, weights: Callable[[ImplicitVectors, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """For each expert the mean over its matrices of a weighted sum of their eigenvectors."""
    rows = []
    for expert, row in enumerate(router.detach().cpu()):
        sums = []
        for matrix in experts(expert):
            vectors = ImplicitVectors(matrix.detach().cpu())
            sums.append(vectors.weighted_sum(weights(vectors, vectors.similarities(row))))
        rows.append(torch.stack(sums).mean(dim=0))
    return torch.stack(rows).float()
