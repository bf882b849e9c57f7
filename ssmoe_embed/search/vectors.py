"""The file of vectors: unit vectors one after the other, only ever appended to, memory-mapped to be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.search.errors import RECOVERY, UNHARMED, DamagedIndexError

Array = np.ndarray[Any, Any]


class VectorType(Choice):
    """How a number of a stored vector is kept."""

    FLOAT32 = "float32"
    """Exactly."""
    FLOAT16 = "float16"
    """In half the space, to about three digits."""


def unit(vectors: Array) -> Array:
    """Vectors `[n,D]` scaled to length 1, float32.

    Raises:
        ValueError: One of them is not finite or is zero, so that it has no direction.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(wrong):
        raise ValueError(
            f"The vectors of {len(wrong)} texts are zero or not finite (the first is number {wrong[0]}); "
            "load the model with model_kwargs={'dtype': 'float32'}."
        )
    return (vectors / lengths).astype(np.float32)


def append_rows(path: Path, first: int, vectors: Array) -> None:
    """Write vectors `[n,D]` at row `first` and flush them to disk; what an interrupted writer left there is overwritten.

    Raises:
        OSError: That was not possible, as on a full disk.
    """
    data = np.ascontiguousarray(vectors)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(first * data.shape[1] * data.itemsize)
            file.write(data.tobytes())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {UNHARMED}", str(path)) from error


def map_rows(path: Path, rows: int, dimension: int, dtype: str) -> Array:
    """The first rows of the file, `[rows,D]`, memory-mapped.

    Raises:
        DamagedIndexError: The file is missing or shorter than that.
    """
    if not rows:
        return np.empty((0, dimension), dtype=dtype)
    needed = rows * dimension * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.is_file() else None
    if found is None or found < needed:
        state = "is missing" if found is None else f"has {found} bytes where {needed} are needed"
        raise DamagedIndexError(f"{path} {state}; {RECOVERY}.")
    # copy on write: PyTorch warns of arrays that cannot be written to, and the file never changes
    return np.memmap(path, dtype=dtype, mode="c", shape=(rows, dimension))


def row_blocks(dimension: int, target: int = 2**25) -> int:
    """How many rows of float32 are about 32 MiB: what is worked on at a time."""
    return max(1, target // (4 * dimension))
