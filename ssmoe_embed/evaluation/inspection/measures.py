"""Measures of one layer: load, overlap of the experts' subspaces, collapsed routers, and the paper's lemma."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Load:
    """The experts' shares of the tokens in one layer.

    Attributes:
        shares: Choices of each expert divided by those of a mean one, `E` numbers: 1 is even.
        entropy: Entropy of the shares, divided by its maximum `log E`: 1 is even.
        dead: Experts that no token went to.
        choices: Choices counted, `N·k`.
    """

    shares: tuple[float, ...]
    entropy: float
    dead: tuple[int, ...]
    choices: int


def load(chosen: torch.Tensor, experts: int) -> Load:
    """The load of one layer of so many experts, of which each token went to the `chosen [N,k]`."""
    counts = torch.bincount(chosen.flatten(), minlength=experts).double()  # [E]
    p = counts / counts.sum()
    entropy = float(-torch.xlogy(p, p).sum()) / math.log(experts) if experts > 1 else 1.0
    return Load(
        shares=tuple((p * experts).tolist()),
        entropy=entropy,
        dead=tuple(int(expert) for expert in (counts == 0).nonzero()[:, 0]),
        choices=chosen.numel(),
    )


def top_tokens(tokens: torch.Tensor, chosen: torch.Tensor, experts: int, count: int = 8) -> list[list[int]]:
    """The tokens that most set each expert apart.

    Ranked by `n_te · log(n_te·C / (n_t·n_e))`: how often token and expert meet, times how much more often than if the
    expert chose blindly.

    Args:
        tokens: Token ids, `[N]`.
        chosen: The experts that each token went to, `[N,k]`.
        experts: `E`.
        count: Tokens an expert, at most.

    Returns:
        Token ids for each expert; those that it gets no more often than by chance are left out.
    """
    ids, places = torch.unique(tokens, return_inverse=True)  # [V], [N]
    pairs = places[:, None] * experts + chosen  # [N,k]
    met = torch.bincount(pairs.flatten(), minlength=len(ids) * experts).reshape(len(ids), experts).double()  # [V,E]
    by_chance = met.sum(dim=1, keepdim=True) * met.sum(dim=0, keepdim=True) / met.sum()
    score = torch.where(met > 0, met * (met / by_chance.clamp_min(1e-300)).clamp_min(1e-300).log(), 0.0)
    best = score.T.topk(min(count, len(ids)), dim=1)  # [E,count]
    return [
        [int(ids[place]) for value, place in zip(*row, strict=True) if value > 0]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


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
    """The right singular vectors of the `count` largest singular values of `[I,H]`, at most `min(I,H)`: float64 `[k,H]`."""
    W = matrix.detach().double().cpu()
    tall = W.shape[0] > W.shape[1]
    squares, vectors = torch.linalg.eigh(W.T @ W if tall else W @ W.T)  # rising; [m], [m,m]
    kept = min(count, len(squares))
    U = vectors[:, -kept:].flip(1)  # [m,k]
    if tall:
        return U.T  # [k,H]
    return (U.T @ W) / squares[-kept:].flip(0).clamp_min(torch.finfo(torch.float64).tiny).sqrt()[:, None]  # [k,H]


def dominant_bases(
    matrices: Callable[[int], Sequence[torch.Tensor]], experts: Sequence[int], count: int = DIRECTIONS
) -> list[torch.Tensor]:
    """The dominant directions of one layer's experts; the matrices of one expert are alive at a time.

    Args:
        matrices: Reads an expert's matrices `[I,H]`, given its index.
        experts: The indices of the `E` experts.
        count: `k`.

    Returns:
        For each kind of matrix float32 `[E,k,H]`.
    """
    bases = [[dominant_directions(matrix, count).float() for matrix in matrices(expert)] for expert in experts]
    return [torch.stack(kind) for kind in zip(*bases, strict=True)]


def subspace_overlap(bases: torch.Tensor) -> SubspaceOverlap:
    """The overlap of the experts' orthonormal bases `[E,k,H]`."""
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


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """The entries beside the diagonal: `[E,E]` to `[E(E-1)]`."""
    E = len(matrix)
    return matrix[~torch.eye(E, dtype=torch.bool)]


def mean_size(matrix: torch.Tensor) -> float:
    """Mean magnitude of the entries beside the diagonal of `[E,E]`; 0 where there are none."""
    entries = off_diagonal(matrix)
    return float(entries.abs().mean()) if len(entries) else 0.0


def covariances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Population covariance, float64 `[E,E]`, of every column of `first [N,E]` with every one of `second [N,E]`."""
    a, b = (values.double() - values.double().mean(dim=0) for values in (first, second))
    return a.T @ b / len(a)


def correlations(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The same as correlations; those with a column that never changes are 0."""
    scale = [values.double().std(dim=0, correction=0) for values in (first, second)]  # 2 × [E]
    product = scale[0][:, None] * scale[1][None, :]  # [E,E]
    found = covariances(first, second)
    return torch.where(product > 0, found / product.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


@dataclass(frozen=True)
class Collapse:
    """How alike the experts are to one router; every value is over pairs of different experts.

    Attributes:
        cosine: Mean magnitude of the cosine of two rows: 1 is full collapse.
        centred_cosine: The same after the mean row is taken off, which a softmax over all experts does not see.
        rms_cosine: Root mean square of the cosine.
        random_cosine: What lemma B.1 predicts for `rms_cosine` of random directions: `1/√H`.
        correlation: Mean magnitude of the correlation of two experts' logits over the tokens.
        row_norm: Mean length of a row.
    """

    cosine: float
    centred_cosine: float
    rms_cosine: float
    random_cosine: float
    correlation: float
    row_norm: float


def collapse(rows: torch.Tensor, logits: torch.Tensor) -> Collapse:
    """Measure one router of one layer: its rows `[E,H]`, `R` or `W_EV`, and what it says about `N` tokens, `[N,E]`."""
    rows = rows.detach().double().cpu()
    found = cosines(rows)  # [E,E]
    pairs = off_diagonal(found)
    return Collapse(
        cosine=mean_size(found),
        centred_cosine=mean_size(cosines(rows - rows.mean(dim=0))),
        rms_cosine=float(pairs.square().mean().sqrt()) if len(pairs) else 0.0,
        random_cosine=1 / math.sqrt(rows.shape[1]),
        correlation=mean_size(correlations(logits, logits)),
        row_norm=float(rows.norm(dim=1).mean()),
    )


def cosines(rows: torch.Tensor) -> torch.Tensor:
    """Cosine of every two rows: `[E,H]` to `[E,E]`."""
    unit = F.normalize(rows, dim=1)
    return unit @ unit.T


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
    """Check the lemma in one layer, of the logits `[N,E]` of its learned and spectral routers; see `CovarianceBound`."""
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
        holds=float((left <= right * (1 + ROUNDING)).double().mean()),
        relaxed_holds=float((left <= relaxed * (1 + ROUNDING)).double().mean()),
        from_spectral=alpha**2 * mean_size(covariances(e, e)),
        from_cross=alpha * (1 - alpha) * mean_size(cross + cross.T),
        spectral_correlation=mean_size(correlations(e, e)),
        cross_correlation=mean_size(crossed),
        own_correlation=float(crossed.diagonal().mean()),
        learned_correlation=mean_size(correlations(r, r)),
        mixed_correlation=mean_size(correlations(m, m)),
    )
