"""Right singular vectors of an expert matrix, held implicitly: projecting on them and summing them, never forming them.

All of them together are the eigenvectors of the Gram matrix `WᵀW` of https://arxiv.org/abs/2605.30992. A spectral
embedding needs only each one's similarity to the router row and the sum of a selection, so the smaller Gram matrix is
reduced to tridiagonal form `T = QᵀGQ` and its eigenvectors stay factored as `Q·Z`.

`scipy.linalg.lapack` keeps Python's global lock during a call, so threads would wait for one another. The same routines'
addresses are in SciPy's public Cython interface (`scipy.linalg.cython_lapack`), and ctypes gives the lock up.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

Float64 = NDArray[np.float64]

BLOCK = 512
"""Columns that are widened to float64 at a time, and eigenvectors that are formed at a time."""
TAIL = 1e-5
"""Singular values below this share of the largest are computed again without the larger ones (see `_Refined`).

Measured on 1024x2048 with singular values decaying to 1e-6: the mean of 50 vectors has 1 - cosine 3e-10 without, 5e-12
with 1e-5, 2e-15 with 1e-4, at 1.00, 1.24 and 1.46 times the time; trained and random weights seldom have such a tail.
"""
RANK = 1e-10
"""Singular values below this share of the largest count as zero: their vectors are arbitrary.

Measured: exact zeros come out at up to 1.4e-11; what float32 rounding leaves of a zero is above 1e-8.
"""


class DenseVectors:
    """The usable right singular vectors `v_1..v_m` of a matrix `[M,H]`, in any order and of arbitrary sign, as rows."""

    def __init__(self, values: torch.Tensor, rows: torch.Tensor) -> None:
        self.values = values  # the singular values, [m]
        self.rows = rows  # [m,H]

    @classmethod
    def from_svd(cls, matrix: torch.Tensor) -> DenseVectors:
        """All `min(M,H)` vectors as `torch.linalg.svd` returns them in float32: the reference's way."""
        _, values, rows = torch.linalg.svd(matrix.to(torch.float32), full_matrices=False)
        return cls(values, rows)

    @classmethod
    def from_eigh(cls, matrix: torch.Tensor) -> DenseVectors:
        """The vectors by `torch.linalg.eigh` of the smaller Gram matrix in float64, on the matrix's device (a GPU).

        Without `_Refined`'s second look, so singular values below about `1e-7` of the largest are lost in rounding.
        """
        W = matrix.to(torch.float64)  # [M,H]
        tall = W.shape[0] > W.shape[1]
        squares, U = torch.linalg.eigh(W.T @ W if tall else W @ W.T)  # [m], [m,m]
        values = squares.clamp_min(0).sqrt()
        usable = values > values[-1] * 1e-7
        values, U = values[usable], U[:, usable]
        return cls(values, U.T if tall else (U.T @ W) / values[:, None])

    def similarities(self, row: torch.Tensor) -> torch.Tensor:
        """`row·v_j` for a row `[H]`: `[m]`."""
        return self.rows @ row.to(self.rows)

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """`Σ_j w_j v_j` for weights `[m]`: `[H]`."""
        return weights.to(self.rows) @ self.rows

    def blocks(self) -> Iterator[torch.Tensor]:
        """All vectors as rows, a block `[b,H]` after the other."""
        yield from torch.split(self.rows, BLOCK)


class ImplicitVectors:
    """What `DenseVectors` are, never formed and to float64 accuracy, by LAPACK.

    Args:
        matrix: `W [M,H]`, of any floating-point type, on the CPU; widened to float64 a block at a time.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self._tall = matrix.shape[0] > matrix.shape[1]
        self._X = matrix.T if self._tall else matrix  # [n,N], n <= N: Gram matrix XXᵀ of the smaller side
        self._left = _left_vectors(self._X, floor=0.0)
        self.values = torch.from_numpy(self._left.values)

    def similarities(self, row: torch.Tensor) -> torch.Tensor:
        """`r·v_j = (Zᵀ Qᵀ W r)_j / s_j`, or `(Zᵀ Qᵀ r)_j` for a tall matrix: `[m]`."""
        r = row.to("cpu", torch.float64).numpy()  # [H]
        if self._tall:
            return torch.from_numpy(self._left.project(r))
        blocks = zip(torch.split(self._X, BLOCK, dim=1), np.split(r, range(BLOCK, len(r), BLOCK)), strict=True)
        product = np.sum([block.to(torch.float64).numpy() @ part for block, part in blocks], axis=0)  # X r, [n]
        return torch.from_numpy(self._left.project(product) / self._left.values)

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """`Wᵀ Q (Z (w / s))`, or `Q (Z w)` for a tall matrix: `[H]`."""
        return self._sum(weights.to(torch.float64).numpy()[:, None])[0]

    def blocks(self) -> Iterator[torch.Tensor]:
        """The vectors, formed a block after the other."""
        m = len(self._left.values)
        for start in range(0, m, BLOCK):
            yield self._sum(np.eye(m, min(BLOCK, m - start), -start))

    def _sum(self, weights: Float64) -> torch.Tensor:
        """`[m,b]` weights to `b` sums `[b,H]`."""
        if self._tall:
            return torch.from_numpy(np.ascontiguousarray(self._left.combine(weights).T))
        left = self._left.combine(weights / self._left.values[:, None])  # [n,b]
        return torch.from_numpy(_transposed_times(left, self._X))


Vectors = DenseVectors | ImplicitVectors


@dataclass(frozen=True)
class _Reflected:
    """Left singular vectors `U = [u_1..u_m]` of `X [n,N]` as `U = Q·Z`.

    `Q` are the Householder reflectors of the tridiagonal reduction, `Z` the tridiagonal matrix's eigenvectors. Matrices
    are Fortran-ordered, as LAPACK wants them.
    """

    values: Float64  # [m]
    reduced: Float64  # [n,n], holds Q together with
    factors: Float64  # [n-1]
    Z: Float64  # [n,m]

    @classmethod
    def of(cls, X: torch.Tensor) -> _Reflected:
        """All vectors, by the Gram matrix `G = XXᵀ`.

        Raises:
            numpy.linalg.LinAlgError: Divide and conquer did not converge.
        """
        n = len(X)
        gram = np.zeros((n, n), order="F")  # its lower triangle; then the reflectors
        for part in torch.split(X, BLOCK, dim=1):
            block, b = part.to(torch.float64).numpy(), part.shape[1]  # [n,b]; gram += block·blockᵀ
            if block.flags.f_contiguous:
                _call("dsyrk", "L", "N", n, b, 1.0, block, n, 1.0, gram, n)
            else:
                _call("dsyrk", "L", "T", n, b, 1.0, np.ascontiguousarray(block), b, 1.0, gram, n)
        diagonal, off, factors = np.empty(n), np.empty(n - 1), np.empty(n - 1)
        _call_with_work("dsytrd", "L", n, gram, n, diagonal, off, factors)
        Z = np.empty((n, n), order="F")
        work, integers = np.empty(1 + 4 * n + n * n), np.empty(3 + 5 * n, dtype=np.intc)
        _checked_call("dstevd", "V", n, diagonal, off, Z, n, work, len(work), integers, len(integers))
        return cls(np.sqrt(diagonal.clip(0.0)), gram, factors, Z)  # eigenvalues stand where the diagonal was, rising

    def part(self, usable: NDArray[np.bool_]) -> _Reflected:
        """The same with only some of the vectors."""
        return self if usable.all() else replace(self, values=self.values[usable], Z=self.Z[:, usable])

    def project(self, y: Float64) -> Float64:
        """`Uᵀ y`: `[n]` to `[m]`."""
        return self.Z.T @ self.reflected("T", y[:, None])[:, 0]

    def combine(self, weights: Float64) -> Float64:
        """`U c`: `[m,b]` to `[n,b]`."""
        return self.reflected("N", self.Z @ weights)

    def reflected(self, trans: str, columns: Float64) -> Float64:
        """`Q·columns` (trans="N") or `Qᵀ·columns` ("T"): `[n,b]`."""
        columns = columns.copy(order="F")
        n, b = columns.shape
        _call_with_work("dormtr", "L", "L", trans, n, b, self.reduced, n, self.factors, columns, n)
        return columns


class _Refined:
    """Vectors of large singular values as they are, the others (the tail) as `basis` times those of `basisᵀ X`.

    Rounding in a Gram matrix is relative to its *largest* eigenvalue, so a direction 1e-6 times weaker is blurred in
    its 1e-12 times smaller one. The tail's subspace is still right: within it the larger values are gone, so a second
    decomposition there is as sharp as the first was at the top.
    """

    def __init__(self, head: _Reflected, basis: Float64, tail: _Reflected | _Refined) -> None:
        self.values: Float64 = np.concatenate([head.values, tail.values])  # [m]
        self._head, self._basis, self._tail = head, basis, tail  # basis [n,k]

    def project(self, y: Float64) -> Float64:
        return np.concatenate([self._head.project(y), self._tail.project(self._basis.T @ y)])

    def combine(self, weights: Float64) -> Float64:
        head = len(self._head.values)
        return self._head.combine(weights[:head]) + self._basis @ self._tail.combine(weights[head:])


def _left_vectors(X: torch.Tensor, floor: float) -> _Reflected | _Refined:
    """The left singular vectors of `X [n,N]` whose singular value is above `floor` and above rounding."""
    whole = _Reflected.of(X)
    top = whole.values.max(initial=0.0)
    floor = max(floor, RANK * top)
    tail = whole.values <= TAIL * top
    if not tail.any() or top <= floor:
        return whole.part(whole.values > floor)
    basis = whole.reflected("N", whole.part(tail).Z)  # [n,k]
    rest = torch.from_numpy(_transposed_times(basis, X))  # [k,N]
    return _Refined(whole.part(~tail), basis, _left_vectors(rest, floor))


def _transposed_times(left: Float64, X: torch.Tensor) -> Float64:
    """`leftᵀ X`: `[n,b]·[n,N]` to `[b,N]`."""
    out = np.empty((left.shape[1], X.shape[1]))
    for start in range(0, X.shape[1], BLOCK):
        out[:, start : start + BLOCK] = left.T @ X[:, start : start + BLOCK].to(torch.float64).numpy()
    return out


Argument = str | int | float | NDArray[Any]


def _call_with_work(name: str, *arguments: Argument) -> None:
    """Call a LAPACK routine after asking it for the size of its workspace."""
    size = np.empty(1)
    _checked_call(name, *arguments, size, -1)
    work = np.empty(int(size[0]))
    _checked_call(name, *arguments, work, len(work))


def _checked_call(name: str, *arguments: Argument) -> None:
    """Call a LAPACK routine and look at its `info`."""
    info = np.zeros(1, dtype=np.intc)
    _call(name, *arguments, info)
    if info[0]:
        raise np.linalg.LinAlgError(f"LAPACK's {name} failed (info={info[0]}).")


def _call(name: str, *arguments: Argument) -> None:
    """Call a routine of BLAS or LAPACK, all of whose arguments are pointers."""
    pointers: list[object] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            pointers.append(ctypes.c_void_p(argument.ctypes.data))
        elif isinstance(argument, str):
            pointers.append(ctypes.c_char_p(argument.encode()))
        else:
            number = ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_double(argument)
            pointers.append(ctypes.byref(number))
    _routine(name)(*pointers)


@cache
def _routine(name: str) -> Callable[..., None]:
    """A routine of `scipy.linalg.cython_lapack` or `cython_blas` as a ctypes function."""
    capsule = (cython_lapack.__pyx_capi__ | cython_blas.__pyx_capi__)[name]
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    signature = name_of(capsule)  # such as b"void (char *, int *, …)"
    if b", int *," not in signature:
        raise ImportError(f"this SciPy build's {name} does not take 32-bit integers ({signature!r}).")
    return ctypes.CFUNCTYPE(None)(address_of(capsule, signature))


def own_parts(
    experts: Callable[[int], Sequence[torch.Tensor]], count: int, rank: int
) -> Callable[[int], Sequence[torch.Tensor]]:
    """What reads an expert's matrices `[I,H]` without the leading part, of that rank, of the mean of all `count` experts'.

    Raises:
        ValueError: The rank is above the matrices'.
    """
    if rank == 0:
        return experts
    sums = [matrix.double().cpu() for matrix in experts(0)]
    for expert in range(1, count):
        for total, matrix in zip(sums, experts(expert), strict=True):
            total += matrix.cpu()
    common = []
    for total in sums:
        if rank >= min(total.shape):
            raise ValueError(f"exclude_common={rank} would leave nothing of matrices of shape {tuple(total.shape)}.")
        left, values, right = torch.linalg.svd(total / count, full_matrices=False)
        common.append(((left[:, :rank] * values[:rank]) @ right[:rank]).float())
    return lambda expert: [
        one.float() - shared.to(one.device) for one, shared in zip(experts(expert), common, strict=True)
    ]
