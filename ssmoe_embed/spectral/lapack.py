"""The BLAS and LAPACK routines of the decomposition, called without Python's global lock.

`scipy.linalg.lapack` keeps the lock during a call, so threads would wait for one another. The same routines' addresses
are in SciPy's public Cython interface (`scipy.linalg.cython_lapack`), and ctypes gives the lock up.
All matrices are float64 and lie column by column (Fortran order).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

Float64 = NDArray[np.float64]
Argument = str | int | float | NDArray[Any]


def add_gram(block: Float64, gram: Float64) -> None:
    """`gram += block·blockᵀ`, lower triangle only, in place: `[n,b]`, in either order, and `[n,n]`."""
    n, b = block.shape
    block = block if block.flags.f_contiguous else np.ascontiguousarray(block)
    by_columns = block.flags.f_contiguous
    layout = ("N", n) if by_columns else ("T", b)
    _call("dsyrk", "L", layout[0], n, b, 1.0, block, layout[1], 1.0, gram, n, module=cython_blas)


def tridiagonalise(gram: Float64) -> tuple[Float64, Float64, Float64]:
    """Reduce the symmetric `gram [n,n]` (its lower triangle) to `QᵀGQ = T`, leaving `Q`'s reflectors in its place.

    Returns:
        The diagonal `[n]` and off-diagonal `[n-1]` of `T`, and the reflectors' factors `[n-1]`.
    """
    n = len(gram)
    diagonal, off, factors = np.empty(n), np.empty(n - 1), np.empty(n - 1)
    _with_work("dsytrd", "L", n, gram, n, diagonal, off, factors)
    return diagonal, off, factors


def tridiagonal_eigenvectors(diagonal: Float64, off: Float64) -> tuple[Float64, Float64]:
    """Eigenvalues `[n]`, rising, and eigenvectors `Z [n,n]` of a tridiagonal matrix, by divide and conquer.

    Raises:
        numpy.linalg.LinAlgError: It did not converge.
    """
    n = len(diagonal)
    values, rest, Z = diagonal.copy(), off.copy(), np.empty((n, n), order="F")
    work, integers = np.empty(1 + 4 * n + n * n), np.empty(3 + 5 * n, dtype=np.intc)
    _checked("dstevd", "V", n, values, rest, Z, n, work, len(work), integers, len(integers))
    return values, Z


def apply_reflectors(trans: str, reduced: Float64, factors: Float64, columns: Float64) -> None:
    """`columns ← Q·columns` (trans="N") or `Qᵀ·columns` ("T"), in place: `[n,b]`, with `tridiagonalise`'s results."""
    n, b = columns.shape
    _with_work("dormtr", "L", "L", trans, n, b, reduced, n, factors, columns, n)


def _with_work(name: str, *arguments: Argument) -> None:
    """Call a LAPACK routine after asking it for the size of its workspace."""
    size = np.empty(1)
    _checked(name, *arguments, size, -1)
    work = np.empty(int(size[0]))
    _checked(name, *arguments, work, len(work))


def _checked(name: str, *arguments: Argument) -> None:
    """Call a LAPACK routine and look at its `info`."""
    info = np.zeros(1, dtype=np.intc)
    _call(name, *arguments, info)
    if info[0]:
        raise np.linalg.LinAlgError(f"LAPACK's {name} failed (info={info[0]}).")


def _call(name: str, *arguments: Argument, module: ModuleType = cython_lapack) -> None:
    """Call a routine, all of whose arguments are pointers."""
    _routine(module, name)(*map(_pointer, arguments))


def _pointer(argument: Argument) -> object:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, str):
        return ctypes.c_char_p(argument.encode())
    return ctypes.byref(ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_double(argument))


@cache
def _routine(module: ModuleType, name: str) -> Callable[..., None]:
    """A routine of `scipy.linalg.cython_lapack` or `cython_blas` as a ctypes function."""
    capsule = module.__pyx_capi__[name]
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    signature = name_of(capsule)  # such as b"void (char *, int *, …)"
    if b", int *," not in signature:
        raise ImportError(f"this SciPy build's {name} does not take 32-bit integers ({signature!r}).")
    return ctypes.CFUNCTYPE(None)(address_of(capsule, signature))
