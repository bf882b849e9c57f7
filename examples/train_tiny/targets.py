"""Reduce the teacher's 384 dimensions to the student's 256 without changing the cosines much."""

from __future__ import annotations

import numpy as np


def fit_basis(vectors: np.ndarray, dimensions: int, sample: int = 50_000) -> np.ndarray:
    """Return the leading right singular vectors, `[384, dimensions]`.

    The vectors are not centred: cosines are about the origin. The first `sample` rows stand for all: they are shuffled.
    """
    some = vectors[:sample].astype(np.float64)
    values, basis = np.linalg.eigh(some.T @ some)
    basis = basis[:, np.argsort(values)[::-1][:dimensions]]
    signs = np.sign(basis[np.abs(basis).argmax(0), np.arange(dimensions)])
    return np.asarray(basis * signs, np.float32)


def align_basis(vectors: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the orthonormal `[384, H]` that brings the teacher's vectors nearest to another model's (Procrustes)."""
    left, _, right = np.linalg.svd(vectors.T.astype(np.float64) @ outputs, full_matrices=False)
    return np.asarray(left @ right, np.float32)


def project(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return unit vectors in the basis, float16 to save memory."""
    out = np.empty((len(vectors), basis.shape[1]), np.float16)
    for start in range(0, len(vectors), 65_536):
        part = vectors[start : start + 65_536].astype(np.float32) @ basis
        out[start : start + 65_536] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out
