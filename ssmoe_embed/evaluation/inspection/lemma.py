"""Lemma 3.1 of https://arxiv.org/abs/2605.30992 on real activations.

For mixed logits `m = (1-α)·r + α·e` the lemma says `Cov(m_i, m_j) = (1-α)²·Cov(r_i, r_j)` for `i ≠ j`, provided that the
spectral logits of two experts are uncorrelated and that spectral and learned logits are. Without the provisos

    Cov(m_i, m_j) = (1-α)² Cov(r_i, r_j) + α² Cov(e_i, e_j) + α(1-α) [Cov(e_i, r_j) + Cov(r_i, e_j)].

A covariance also shrinks where logits merely become smaller, so the scale-free correlations stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ssmoe_embed.evaluation.inspection.collapse import correlations, covariances, mean_size, off_diagonal

ROUNDING = 1e-6
"""Relative excess over a bound that counts as rounding."""


@dataclass(frozen=True)
class CovarianceBound:
    """Both sides of the lemma's inequality in one layer, over pairs of different experts.

    Attributes:
        alpha: The spectral router's share.
        mixed: Left side: mean `|Cov(m_i, m_j)|`.
        bound: Right side: mean `(1-α)² |Cov(r_i, r_j)|`.
        holds: Share of the pairs for which left ≤ right.
        relaxed_holds: The same with `2α(1-α)·ε` added on the right, `ε` the largest `|Cov(e_i, r_j)|`, as the paper does for
            routers that choose eigenvectors by the learned router.
        from_spectral: Mean `α² |Cov(e_i, e_j)|`, which the lemma's first proviso sets to zero.
        from_cross: Mean `α(1-α) |Cov(e_i, r_j) + Cov(r_i, e_j)|`, which its second one does.
        spectral_correlation: Mean `|corr(e_i, e_j)|`.
        cross_correlation: Mean `|corr(e_i, r_j)|`, `i ≠ j`.
        own_correlation: Mean `corr(e_i, r_i)`: how far an expert's spectral logit repeats its learned one.
        learned_correlation: Mean `|corr(r_i, r_j)|`.
        mixed_correlation: Mean `|corr(m_i, m_j)|`: whether the mix decorrelates experts beyond shrinking their logits.
    """

    alpha: float
    mixed: float
    bound: float
    holds: float
    relaxed_holds: float
    from_spectral: float
    from_cross: float
    spectral_correlation: float
    cross_correlation: float
    own_correlation: float
    learned_correlation: float
    mixed_correlation: float


def covariance_bound(learned: torch.Tensor, spectral: torch.Tensor, alpha: float) -> CovarianceBound:
    """Check the lemma in one layer.

    Args:
        learned: Logits of the learned router, `[N,E]`.
        spectral: Logits of the spectral router, `[N,E]`.
        alpha: The spectral router's share.
    """
    r, e = learned.double(), spectral.double()
    m = torch.lerp(r, e, alpha)  # [N,E]
    cross = covariances(e, r)  # [E,E]
    left = off_diagonal(covariances(m, m)).abs()  # [E(E-1)]
    right = (1 - alpha) ** 2 * off_diagonal(covariances(r, r)).abs()
    relaxed = right + 2 * alpha * (1 - alpha) * cross.abs().max()
    crossed = correlations(e, r)  # [E,E]
    return CovarianceBound(
        alpha=alpha,
        mixed=float(left.mean()),
        bound=float(right.mean()),
        holds=_share(left, right),
        relaxed_holds=_share(left, relaxed),
        from_spectral=alpha**2 * mean_size(covariances(e, e)),
        from_cross=alpha * (1 - alpha) * mean_size(cross + cross.T),
        spectral_correlation=mean_size(correlations(e, e)),
        cross_correlation=mean_size(crossed),
        own_correlation=float(crossed.diagonal().mean()),
        learned_correlation=mean_size(correlations(r, r)),
        mixed_correlation=mean_size(correlations(m, m)),
    )


def _share(left: torch.Tensor, right: torch.Tensor) -> float:
    """Share of pairs with `left ≤ right`, up to rounding."""
    return float((left <= right * (1 + ROUNDING)).double().mean())
