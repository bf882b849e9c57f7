"""Features of texts, kept for as long as several methods read them: bounded in memory and on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GIB = 2**30
_CHUNK_BYTES = 2**24
"""Rows are kept in pieces of about this size, so that a small task takes little."""


class FeatureStore:
    """Rows of features by key: in memory up to a limit, then in a scratch file up to another, then not at all."""

    def __init__(
        self, width: int, *, memory: int = 2 * GIB, scratch: int = 16 * GIB, folder: str | Path | None = None
    ) -> None:
        """Make an empty store.

        Args:
            width: Numbers a row, float32.
            memory: Bytes of rows to keep in memory.
            scratch: Bytes of rows to keep on disk beyond that.
            folder: Where the scratch file is; by default the system's folder for temporary files.
        """
        self._width = width
        self._rows_a_chunk = max(1, _CHUNK_BYTES // (4 * width))
        size = 4 * width * self._rows_a_chunk
        self._in_memory = memory // size
        self._limit = (self._in_memory + scratch // size) * self._rows_a_chunk
        self._folder = folder
        self._file: Any = None
        self._chunks: list[NDArray[np.float32]] = []
        self._places: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_full(self) -> bool:
        """Whether no row more is kept."""
        return len(self._places) >= self._limit

    def put(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Keep rows `[n,width]`, or as many of them as fit."""
        for key, row in zip(keys, rows, strict=True):
            if key in self._places or self.is_full:
                continue
            chunk, place = divmod(len(self._places), self._rows_a_chunk)
            if chunk == len(self._chunks):
                self._chunks.append(self._new_chunk())
            self._chunks[chunk][place] = row
            self._places[key] = len(self._places)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """A row `[width]`; None if it is not kept."""
        if key not in self._places:
            return None
        chunk, place = divmod(self._places[key], self._rows_a_chunk)
        row: NDArray[np.float32] = self._chunks[chunk][place]
        return row

    def _new_chunk(self) -> NDArray[np.float32]:
        shape, size = (self._rows_a_chunk, self._width), 4 * self._rows_a_chunk * self._width
        on_disk = len(self._chunks) - self._in_memory
        if on_disk < 0:
            return np.empty(shape, dtype=np.float32)
        if self._file is None:  # it has no name, so it goes when the process does, however that ends
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (lives as long as the store)
        self._file.truncate((on_disk + 1) * size)
        return np.memmap(self._file, dtype=np.float32, mode="r+", offset=on_disk * size, shape=shape)
