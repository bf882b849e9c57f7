"""Encoding a stream of texts into a file, with memory that does not grow with their number."""

from __future__ import annotations

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from tqdm.auto import tqdm

from ssmoe_embed.common.choices import Choice

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK_BATCHES = 32
"""Batches read ahead, so that texts of like length share a batch."""


class VectorFormat(Choice):
    """How vectors are written."""

    NPY = "npy"
    """One NumPy array, a row a text."""
    JSONL = "jsonl"
    """One object a line, with `text` and `embedding`."""
    PARQUET = "parquet"
    """A table with `text` and `embedding`; needs pyarrow."""


def encode_stream(
    model: SentenceTransformer,
    texts: Iterable[str],
    output: IO[bytes],
    kind: VectorFormat,
    *,
    batch_size: int = 32,
    total: int | None = None,
    progress: bool = True,
    **encode_kwargs: Any,
) -> int:
    """Encode texts as they come and write their vectors in the same order.

    Args:
        model: Any sentence-transformers model.
        texts: The texts.
        output: A binary stream; it need not be seekable.
        kind: The format.
        batch_size: Texts per forward pass.
        total: Their number, for the progress bar, where known.
        progress: Show a progress bar on standard error.
        **encode_kwargs: For `model.encode`: `normalize_embeddings`, `precision`, `truncate_dim`, `prompt_name`, ….

    Returns:
        How many texts there were.

    Raises:
        ValueError: `precision` is int8 or uint8, whose ranges need all vectors at once.
    """
    check_precision(encode_kwargs)
    count = 0
    with _WRITERS[kind](output) as writer, tqdm(total=total, desc="Encoding", unit="text", disable=not progress) as bar:
        for chunk in _chunks(iter(texts), batch_size * CHUNK_BATCHES):
            vectors = model.encode(chunk, batch_size=batch_size, show_progress_bar=False, **encode_kwargs)
            writer.write(chunk, vectors)
            count += len(chunk)
            bar.update(len(chunk))
        if not count:
            writer.write([], model.encode([""], show_progress_bar=False, **encode_kwargs)[:0])
    return count


def check_precision(encode_kwargs: Mapping[str, Any]) -> None:
    """Refuse a `precision` that cannot be written piece by piece.

    Raises:
        ValueError: It is int8 or uint8, whose ranges need all vectors at once.
    """
    if encode_kwargs.get("precision") in ("int8", "uint8"):
        raise ValueError(
            f"precision={encode_kwargs['precision']!r} is scaled by the range of all vectors, which a stream does not know; "
            "write float32 and use sentence_transformers.quantize_embeddings, or choose binary or ubinary."
        )


def write_stream(
    parts: Iterable[tuple[Sequence[str], np.ndarray[Any, Any]]], output: IO[bytes], kind: VectorFormat
) -> int:
    """Write vectors that were made before.

    Args:
        parts: Texts and their vectors `[n,D]`, at least one part.
        output: A binary stream; it need not be seekable.
        kind: The format.

    Returns:
        How many vectors there were.
    """
    count = 0
    with _WRITERS[kind](output) as writer:
        for texts, vectors in parts:
            writer.write(texts, vectors)
            count += len(vectors)
    return count


def _chunks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while chunk := list(islice(texts, size)):
        yield chunk


class _Writer(ABC):
    """Writes chunks of vectors; the output is complete when the `with` block ends without error."""

    def __init__(self, output: IO[bytes]) -> None:
        self.output = output

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    @abstractmethod
    def write(self, texts: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
        """Write one chunk, `[n,D]`."""

    def finish(self) -> None:  # noqa: B027 (not every format has an end)
        """Write what stands at the end."""

    def close(self) -> None:  # noqa: B027 (not every format holds something)
        """Let go of what was held."""


class _NpyWriter(_Writer):
    """An `.npy` file begins with the number of its rows, so the rows wait in a temporary file on disk."""

    def __init__(self, output: IO[bytes]) -> None:
        super().__init__(output)
        self.rows = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the block ends)
        self.count = 0
        self.row: np.ndarray[Any, Any] | None = None

    def write(self, texts: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
        del texts
        self.rows.write(np.ascontiguousarray(vectors).tobytes())
        self.count += len(vectors)
        self.row = vectors[:0]

    def finish(self) -> None:
        if self.row is None:
            return
        shape = (self.count, *self.row.shape[1:])
        header = {"descr": npy.dtype_to_descr(self.row.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self.output, header)
        self.rows.seek(0)
        shutil.copyfileobj(self.rows, self.output)

    def close(self) -> None:
        self.rows.close()


class _JsonlWriter(_Writer):
    def write(self, texts: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            self.output.write(json.dumps({"text": text, "embedding": vector}).encode() + b"\n")


class _ParquetWriter(_Writer):
    def __init__(self, output: IO[bytes]) -> None:
        super().__init__(output)
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise ValueError("Writing Parquet needs pyarrow: pip install 'ssmoe-embed[parquet]'.") from None
        self.pa, self.pq = pa, pq
        self.file: Any = None

    def write(self, texts: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
        values = self.pa.array(np.ascontiguousarray(vectors).reshape(-1))
        column = self.pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        table = self.pa.table({"text": self.pa.array(clean, self.pa.string()), "embedding": column})
        if self.file is None:
            self.file = self.pq.ParquetWriter(self.output, table.schema)
        self.file.write_table(table)

    def finish(self) -> None:
        if self.file is not None:
            self.file.close()


_WRITERS: dict[VectorFormat, type[_Writer]] = {
    VectorFormat.NPY: _NpyWriter,
    VectorFormat.JSONL: _JsonlWriter,
    VectorFormat.PARQUET: _ParquetWriter,
}
