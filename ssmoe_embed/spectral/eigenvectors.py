"""Steps 1-3 of the spectral router (https://arxiv.org/abs/2605.30992): from expert matrices to spectral embeddings.

For expert `i`, each of its matrices `W [I,H]` and its router row `r_i`:

1. `v_1..v_m`, the eigenvectors of `WᵀW`, `m = min(I,H)` (see `decomposition`);
2. `v_j ← sign_j v_j`, by default `sign_j = sign(r_i·v_j)`;
3. `e_i` = mean over the matrices of the mean of the `C` vectors with the largest `r_i·v_j`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache

import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from ssmoe_embed.spectral.decomposition import DenseVectors, ImplicitVectors, Vectors
from ssmoe_embed.spectral.settings import Selection, Sign, SpectralSettings

TIE = 1e-6
"""Entries and similarities this close, relative to the largest, are told apart by their order, not by rounding."""
_DECOMPOSE_THERE = ("cuda",)
"""Kinds of devices that decompose their matrices themselves; from others the matrices come to the CPU."""
BLIND = 1e-12
"""Similarities below this share of the router row's norm are rounding: the row says nothing about the matrix."""


def spectral_embedding(
    matrices: Sequence[torch.Tensor], router_row: torch.Tensor, settings: SpectralSettings
) -> torch.Tensor:
    """The spectral embedding `e_i` of one expert.

    Args:
        matrices: The expert's matrices `[I,H]` (rows in hidden space), of any floating-point type. On a CUDA device
            they are decomposed there.
        router_row: The expert's router row `r_i [H]`.
        settings: `scale` and `exclude_common` concern whole layers and are not used here.

    Returns:
        `e_i [H]` in float32, on the CPU.

    Raises:
        ValueError: A matrix or the row has a wrong shape or type, holds NaN or infinity, or a matrix is zero.
    """
    with _controller().limit(limits=1, user_api="blas"):
        return _embedding(matrices, router_row, _Keep(settings))


def spectral_embeddings(
    experts: Callable[[int], Sequence[torch.Tensor]],
    router: torch.Tensor,
    settings: SpectralSettings,
    *,
    workers: int | None = None,
    on_expert: Callable[[], object] | None = None,
) -> torch.Tensor:
    """The spectral embeddings of one layer's experts, several experts at a time.

    Every expert is computed by one thread with one BLAS thread, so the result does not depend on `workers`, and the
    matrices of at most `workers` experts are alive at a time.

    Args:
        experts: Reads an expert's matrices `[I,H]`, given its index. Called once an expert, never twice at a time.
        router: `R [E,H]`.
        settings: See `spectral_embedding`; its warnings come once a layer.
        workers: Experts computed at a time; by default `torch.get_num_threads()`.
        on_expert: Called after each expert, for a progress bar.

    Returns:
        `W_EV [E,H]` in float32, on the CPU, before `scale`.

    Raises:
        ValueError: An expert cannot be embedded; the message names it.
    """
    workers = torch.get_num_threads() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers={workers} computes nothing; pass at least 1, or None for one per torch thread.")
    keep = _Keep(settings)
    reading = threading.Lock()

    def embed(index: int) -> torch.Tensor:
        with reading:
            matrices = experts(index)
        try:
            return _embedding(matrices, router[index], keep)
        except ValueError as error:
            raise ValueError(f"expert {index}: {error}") from error

    with _controller().limit(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(embed, index): index for index in range(len(router))}
        try:
            rows = torch.empty(router.shape, dtype=torch.float32)  # [E,H]
            for future in as_completed(futures):
                rows[futures[future]] = future.result()
                if on_expert is not None:
                    on_expert()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has begun is finished, no more
    return rows


@cache
def _controller() -> ThreadpoolController:
    """Of the BLAS libraries of NumPy, SciPy and PyTorch; to find them takes longer than a small matrix."""
    return ThreadpoolController()


class _Keep:
    """How many vectors of a matrix are averaged; each warning is given once, however many matrices it concerns."""

    def __init__(self, settings: SpectralSettings) -> None:
        self.settings = settings
        self._wanted = cache(settings.count)
        self._warned, self._lock = False, threading.Lock()

    def count(self, m: int, usable: int) -> int:
        """Of a matrix with `m = min(I,H)` vectors, `usable` of them with a singular value above zero."""
        if self.settings.select is Selection.AVERAGE:
            return usable
        with self._lock:
            wanted = self._wanted(m)
            if usable < wanted and not self._warned:
                self._warned = True
                warnings.warn(
                    f"top_c={self.settings.top_c} asks for {wanted} eigenvectors, but an expert matrix has rank "
                    f"{usable}; averaging the {usable} it has, there and in other such matrices.",
                    stacklevel=2,
                )
        return min(wanted, usable)


def _embedding(matrices: Sequence[torch.Tensor], row: torch.Tensor, keep: _Keep) -> torch.Tensor:
    """`e_i [H]`: the mean over the matrices."""
    if not matrices:
        raise ValueError("no matrices; pass at least one matrix [I,H] for each expert.")
    if row.ndim != 1 or not torch.isfinite(row).all():
        what = f"has the shape {tuple(row.shape)}, not [H]" if row.ndim != 1 else "holds NaN or infinity"
        raise ValueError(f"the router row {what}; check the checkpoint it comes from.")
    total = torch.zeros(len(row), dtype=torch.float64)
    for position, matrix in enumerate(matrices):
        try:
            there = matrix.device.type in _DECOMPOSE_THERE
            total += _mean_vector(matrix if there else matrix.cpu(), row.detach(), keep).cpu()
        except ValueError as error:
            raise ValueError(f"matrix {position} of {len(matrices)} {error}") from error
    return (total / len(matrices)).to(torch.float32)


def _mean_vector(matrix: torch.Tensor, row: torch.Tensor, keep: _Keep) -> torch.Tensor:
    """Steps 1-3 for one matrix `[M,H]`: `[H]`."""
    _check(matrix, row)
    if keep.settings.sign is Sign.RAW:
        vectors: Vectors = DenseVectors.from_svd(matrix.detach())
    else:
        there = matrix.device.type in _DECOMPOSE_THERE
        vectors = DenseVectors.from_eigh(matrix.detach()) if there else ImplicitVectors(matrix.detach())
    if not len(vectors.values) or not vectors.values.any():
        raise ValueError("is zero, so it has no eigenvectors; check that the checkpoint's weights are loaded.")
    similarities = vectors.similarities(row)  # [m]
    blind = bool(similarities.abs().max() <= BLIND * row.norm())
    signs = _signs(vectors, similarities, Sign.CANONICAL if blind else keep.settings.sign)  # [m]
    order = vectors.values.argsort(descending=True, stable=True)  # equal similarities by falling singular value
    order = order[(signs * similarities * (not blind))[order].argsort(descending=True, stable=True)]
    chosen = order[: keep.count(min(matrix.shape), len(signs))]
    weights = torch.zeros_like(signs)
    weights[chosen] = signs[chosen] / len(chosen)
    return vectors.weighted_sum(weights)


def _check(matrix: torch.Tensor, row: torch.Tensor) -> None:
    """Raise a `ValueError` whose message goes on after "matrix 0 of 3"."""
    if not matrix.is_floating_point() or matrix.itemsize == 1:  # eight bits mean nothing without their scales
        raise ValueError(
            f"has the type {matrix.dtype}; pass floating-point weights (dequantise them first, or use "
            "SpectralRouters.from_checkpoint, which reads eight-bit weights with their scales)."
        )
    if matrix.ndim != 2 or matrix.shape[1] != len(row):
        raise ValueError(
            f"has the shape {tuple(matrix.shape)}, not [I,{len(row)}] as the router row of {len(row)} entries wants; "
            "pass it with its rows in hidden space (down_proj transposed)."
        )
    if not matrix.sum(dtype=torch.float64).isfinite():  # NaN and infinity survive a sum: one pass, no copy
        raise ValueError("holds NaN or infinity; check the checkpoint it comes from.")


def _signs(vectors: Vectors, similarities: torch.Tensor, sign: Sign) -> torch.Tensor:
    """Step 2: `[m]` of ±1."""
    if sign is Sign.RAW:
        return torch.ones_like(similarities)
    if sign is Sign.ALIGNED:
        return torch.where(similarities < 0, -1.0, 1.0).to(similarities)
    signs = []
    for block in vectors.blocks():  # [b,H]
        size = block.abs()
        first = (size >= size.amax(dim=1, keepdim=True) * (1 - TIE)).int().argmax(dim=1)  # [b], among equals
        signs.append(block.gather(1, first[:, None])[:, 0].sign())
    return torch.cat(signs).to(similarities)
