"""The approximate indexes of FAISS: what all have in common, and the kinds behind one setting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.search.manifest import DamagedIndexError
from ssmoe_embed.search.vectors import Array

_MOST_WIDENING = 50
"""How many times as much of an index is looked at, at most, where only some rows may be found."""

Rungs = tuple[tuple[int, int], ...]


class Approximate(ABC):
    """An approximate index of unit vectors; `train` or `load` fills it.

    A kind makes FAISS's index and overrides what differs: the defaults are for one that takes floats, trains itself and is
    searched as a whole.

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
        """Prepare an index of vectors of `dimension` numbers, with its first rung and no `state` if none was saved."""
        self.dimension = dimension
        self.rung = rung or self.rungs[0]
        self.state: dict[str, Any] = dict(state or {})
        self.index: Any = None

    @property
    def covered(self) -> int:
        """How many rows it holds, from the first."""
        return int(self.index.ntotal)

    def train(self, sample: Array, rows: int) -> None:
        """Learn codes from sample vectors `[n,D]` for an index of about so many rows."""
        if len(sample) == 1:  # FAISS asks for two to learn anything
            sample = np.repeat(sample, 2, axis=0)
        self.index = self._new(faiss_library(), rows, len(sample))
        self.index.train(self._coded(sample))

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
        """Rows that may be among the `k` nearest to unit vectors `[Q,D]`, int64 `[Q,n]` with -1 for none.

        Of `allowed`, bool `[R]`, those are true that may be named; None allows all.
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
    def _new(self, faiss: Any, rows: int, sample: int) -> Any:
        """An untrained index for so many rows, to be trained on so many vectors."""

    def _coded(self, vectors: Array) -> Array:
        """Vectors `[n,D]` as FAISS takes them."""
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _parameters(self, faiss: Any, width: int, count: int, chosen: Any) -> Any:
        """FAISS's search parameters."""
        return faiss.SearchParameters(sel=chosen)

    def _read(self, faiss: Any, path: str, flags: int) -> Any:
        return faiss.read_index(path, flags)


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


_FLAT_UP_TO = 20_000
_HNSW_UP_TO = 2_000_000
_SEED = 1234


class IndexKind(Choice):
    """How the nearest vectors are looked for."""

    AUTO = "auto"
    """By the number of vectors: flat up to 20,000 and where there is no FAISS, HNSW up to 2 million, IVF-PQ beyond."""
    FLAT = "flat"
    """Every vector is looked at: exact, and needs no FAISS."""
    HNSW = "hnsw"
    """A graph of neighbours over 8-bit codes: the fastest, with the longest building."""
    IVF = "ivf"
    """Clusters of 8-bit codes, of which the nearest few are looked at."""
    IVFPQ = "ivfpq"
    """Clusters of product-quantised codes: the smallest of the fast ones."""
    SQ8 = "sq8"
    """All 8-bit codes are looked at: a quarter of the memory of flat."""
    BINARY = "binary"
    """All signs are compared: a 32nd of the memory of flat."""

    def resolved(self, rows: int) -> IndexKind:
        """The kind itself, or what `auto` means for so many vectors."""
        if self is not IndexKind.AUTO:
            return self
        if rows <= _FLAT_UP_TO or find_spec("faiss") is None:
            return IndexKind.FLAT
        return IndexKind.HNSW if rows <= _HNSW_UP_TO else IndexKind.IVFPQ


def _rungs(widths: dict[int, tuple[int, ...]]) -> Rungs:
    """The rungs with the widths of each number of candidates per hit."""
    return tuple((width, candidates) for candidates, found in widths.items() for width in found)


class HNSW(Approximate):
    """Hierarchical navigable small world graph over 8-bit codes; the width is `efSearch`."""

    rungs: ClassVar[Rungs] = _rungs({3: (24, 32, 48), 4: (64, 96, 128, 192, 256), 8: (512,), 16: (1024,)})
    _LINKS = 32
    _CONSTRUCTION = 60

    def _new(self, faiss: Any, rows: int, sample: int) -> Any:
        index = faiss.IndexHNSWSQ(
            self.dimension, faiss.ScalarQuantizer.QT_8bit, self._LINKS, faiss.METRIC_INNER_PRODUCT
        )
        index.hnsw.efConstruction = self._CONSTRUCTION
        return index

    def _parameters(self, faiss: Any, width: int, count: int, chosen: Any) -> Any:
        return faiss.SearchParametersHNSW(efSearch=max(width, count), sel=chosen)


class IVF(Approximate):
    """Inverted lists of 8-bit codes; the width is `nprobe`."""

    rungs: ClassVar[Rungs] = _rungs({3: (4, 8, 12, 16, 24, 32, 48), 4: (64, 128, 256, 512)})
    _TRAINING_ROUNDS = 10
    _POINTS_A_LIST = 40

    def _new(self, faiss: Any, rows: int, sample: int) -> Any:
        quantizer, lists = faiss.IndexFlatIP(self.dimension), self._lists(rows, sample)
        codes, metric = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        return self._prepared(faiss.IndexIVFScalarQuantizer(quantizer, self.dimension, lists, codes, metric))

    def _lists(self, rows: int, sample: int) -> int:
        """Number of clusters: about 2√R, and no more than the sample can tell apart."""
        return max(1, min(int(2 * rows**0.5), sample // self._POINTS_A_LIST))

    def _prepared(self, index: Any) -> Any:
        faiss = faiss_library()
        if faiss.get_num_gpus():  # faiss-gpu: finding the clusters is most of the work
            self._clusters = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(index.d))  # the index does not keep it alive
            index.clustering_index = self._clusters
        index.cp.niter, index.cp.seed = self._TRAINING_ROUNDS, _SEED
        index.cp.min_points_per_centroid = 1
        index.cp.spherical = True
        return index

    def _parameters(self, faiss: Any, width: int, count: int, chosen: Any) -> Any:
        return faiss.SearchParametersIVF(nprobe=min(width, self.index.nlist), sel=chosen)


class IVFPQ(IVF):
    """Inverted lists of product-quantised codes of at most 96 bytes; the width is `nprobe`."""

    rungs: ClassVar[Rungs] = _rungs({10: (8, 16), 20: (16, 32), 40: (32, 64), 80: (64, 128), 100: (256,), 200: (512,)})
    _NUMBERS_A_BYTE = 4
    _MOST_BYTES = 96
    _CENTROIDS = 256
    _POINTS_A_CENTROID = 100

    @property
    def _shape(self) -> tuple[int, int]:
        """Bytes a code, and numbers that each byte stands for."""
        count = min(-(-self.dimension // self._NUMBERS_A_BYTE), self._MOST_BYTES)
        return count, -(-self.dimension // count)

    def _new(self, faiss: Any, rows: int, sample: int) -> Any:
        count, numbers = self._shape
        quantizer = faiss.IndexFlatIP(count * numbers)
        bits = 8 if sample >= self._CENTROIDS else max(1, int(np.log2(max(2, sample))))
        lists = self._lists(rows, sample)
        index = faiss.IndexIVFPQ(quantizer, count * numbers, lists, count, bits, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.niter, index.pq.cp.seed = self._TRAINING_ROUNDS, _SEED
        index.pq.cp.min_points_per_centroid = 1
        index.pq.cp.max_points_per_centroid = self._POINTS_A_CENTROID
        return self._prepared(index)

    def _coded(self, vectors: Array) -> Array:
        """Vectors `[n,D]` filled up with zeros, so that all bytes stand for as many numbers."""
        count, numbers = self._shape
        filled = np.zeros((len(vectors), count * numbers), dtype=np.float32)
        filled[:, : self.dimension] = vectors
        return filled


class SQ8(Approximate):
    """8-bit codes, all of which are looked at; the width means nothing."""

    rungs: ClassVar[Rungs] = ((1, 2), (1, 4), (1, 8))

    def _new(self, faiss: Any, rows: int, sample: int) -> Any:
        return faiss.IndexScalarQuantizer(self.dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)


class Binary(Approximate):
    """One bit a number, whether it is above the sample's mean; the width means nothing."""

    rungs: ClassVar[Rungs] = ((1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (1, 512))

    def train(self, sample: Array, rows: int) -> None:
        """Take the mean of sample vectors `[n,D]` as the threshold of each number."""
        self.state["threshold"] = [float(number) for number in sample.mean(axis=0, dtype=np.float64)]
        self.index = self._new(faiss_library(), rows, len(sample))

    def _new(self, faiss: Any, rows: int, sample: int) -> Any:
        return faiss.IndexBinaryFlat(-(-self.dimension // 8) * 8)

    def save(self, path: Path) -> None:
        """Write the index."""
        faiss_library().write_index_binary(self.index, str(path))

    def _coded(self, vectors: Array) -> Array:
        return np.packbits(vectors > np.array(self.state["threshold"], dtype=np.float32), axis=1)

    def _read(self, faiss: Any, path: str, flags: int) -> Any:
        return faiss.read_index_binary(path, flags)


APPROXIMATE: dict[IndexKind, type[Approximate]] = {
    IndexKind.HNSW: HNSW,
    IndexKind.IVF: IVF,
    IndexKind.IVFPQ: IVFPQ,
    IndexKind.SQ8: SQ8,
    IndexKind.BINARY: Binary,
}
