"""What all approximate indexes of FAISS have in common.

An approximate index holds codes, not the vectors: it names candidates, which are then scored with the stored vectors. So a
score is the exact cosine whatever the kind, and the kind decides only what is found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ssmoe_embed.search.errors import DamagedIndexError
from ssmoe_embed.search.vectors import Array

_MOST_WIDENING = 50
"""How many times as much of an index is looked at, at most, where only some rows may be found."""

Rungs = tuple[tuple[int, int], ...]


class Approximate(ABC):
    """An approximate index of unit vectors.

    A kind says how it is trained, what it makes of vectors and how it is searched; here is what follows from that.

    Attributes:
        rungs: `(width, oversample)` from fast to thorough: how much of the index is looked at, and how many candidates are
            named for each result.
        sample_rows: How many vectors it is trained on at most.
    """

    rungs: ClassVar[Rungs]
    sample_rows: ClassVar[int] = 100_000

    def __init__(
        self, dimension: int, rung: tuple[int, int] | None = None, state: Mapping[str, Any] | None = None
    ) -> None:
        """Prepare an index; `train` or `load` fills it.

        Args:
            dimension: Numbers a vector.
            rung: One of `rungs`; by default the first.
            state: What `state` gave when it was saved.
        """
        self.dimension = dimension
        self.rung = rung or self.rungs[0]
        self.state: dict[str, Any] = dict(state or {})
        self.index: Any = None

    @property
    def covered(self) -> int:
        """How many rows it holds, from the first."""
        return int(self.index.ntotal)

    @abstractmethod
    def train(self, sample: Array, rows: int) -> None:
        """Learn codes from sample vectors `[n,D]` for an index of about so many rows."""

    def extend(self, blocks: Iterable[Array]) -> None:
        """Add vectors, block by block."""
        for block in blocks:
            self.index.add(self._coded(block))

    def save(self, path: Path) -> None:
        """Write the index."""
        faiss_library().write_index(self.index, str(path))

    def load(self, path: Path, *, mapped: bool) -> None:
        """Read the index: memory-mapped to be searched, or into memory to be extended.

        Raises:
            DamagedIndexError: FAISS cannot read it.
        """
        faiss = faiss_library()
        try:
            self.index = self._read(faiss, str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        except RuntimeError as error:
            raise DamagedIndexError(
                f"{path} cannot be read by FAISS ({str(error).splitlines()[0]}); rebuild it with `ssmoe index --rebuild`."
            ) from error

    def candidates(self, queries: Array, k: int, allowed: Array | None) -> Array:
        """Rows that may be among the `k` nearest, int64 `[Q,n]` with -1 for none.

        Args:
            queries: Unit vectors `[Q,D]`.
            k: How many results are wanted.
            allowed: bool `[R]`, which rows may be named; None for all.
        """
        width, oversample = self.rung
        count = min(k * oversample, self.covered)
        if allowed is not None:  # the rows to be named are as rare among those looked at as among all
            width = round(width * min(_MOST_WIDENING, len(allowed) / max(1, int(allowed.sum()))))
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")  # must outlive the search
        faiss = faiss_library()
        chosen = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        parameters = self._parameters(faiss, max(width, 1), count, chosen)
        _, rows = self.index.search(self._coded(queries), count, params=parameters)
        return rows

    @abstractmethod
    def _coded(self, vectors: Array) -> Array:
        """Vectors as FAISS takes them."""

    @abstractmethod
    def _parameters(self, faiss: Any, width: int, count: int, chosen: Any) -> Any:
        """FAISS's search parameters."""

    def _read(self, faiss: Any, path: str, flags: int) -> Any:
        return faiss.read_index(path, flags)


class FloatApproximate(Approximate):
    """An index that takes float vectors and learns its codes by itself."""

    def train(self, sample: Array, rows: int) -> None:
        """See `Approximate.train`."""
        if len(sample) == 1:  # FAISS asks for two to learn anything
            sample = np.repeat(sample, 2, axis=0)
        self.index = self._new(faiss_library(), rows, len(sample))
        self.index.train(self._coded(sample))

    @abstractmethod
    def _new(self, faiss: Any, rows: int, sample: int) -> Any:
        """An untrained index for so many rows, to be trained on so many vectors."""

    def _coded(self, vectors: Array) -> Array:
        return np.ascontiguousarray(vectors, dtype=np.float32)


def faiss_library() -> Any:
    """FAISS, imported when it is first needed.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError:
        raise ValueError(
            "This index kind needs FAISS: pip install 'ssmoe-embed[faiss]', or choose --kind flat, which does without."
        ) from None
    return faiss
