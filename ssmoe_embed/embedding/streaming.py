"""Encoding a stream of texts into a file, with memory that does not grow with their number."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from tqdm.auto import tqdm

from ssmoe_embed.common.choices import Choice

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Array = np.ndarray[Any, Any]
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

    def encoded() -> Iterator[tuple[list[str], Array]]:
        some, left = False, iter(texts)
        with tqdm(total=total, desc="Encoding", unit="text", disable=not progress) as bar:
            while chunk := list(islice(left, batch_size * CHUNK_BATCHES)):
                yield chunk, model.encode(chunk, batch_size=batch_size, show_progress_bar=False, **encode_kwargs)
                bar.update(len(chunk))
                some = True
        if not some:
            yield [], model.encode([""], show_progress_bar=False, **encode_kwargs)[:0]

    return write_stream(encoded(), output, kind)


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


def write_stream(parts: Iterable[tuple[Sequence[str], Array]], output: IO[bytes], kind: VectorFormat) -> int:
    """Write vectors that were made before.

    Args:
        parts: Texts and their vectors `[n,D]`, at least one part.
        output: A binary stream; it need not be seekable.
        kind: The format.

    Returns:
        How many vectors there were.
    """
    count = 0
    with _WRITERS[kind](output) as write:
        for texts, vectors in parts:
            write(texts, vectors)
            count += len(vectors)
    return count


_Write = Callable[[Sequence[str], Array], None]
"""Writes one chunk of texts and vectors `[n,D]`; the output is complete when the `with` block ends without error."""


@contextmanager
def _npy_writer(output: IO[bytes]) -> Iterator[_Write]:
    """An `.npy` file begins with the number of its rows, so the rows wait in a temporary file on disk."""
    count = 0
    last: Array | None = None
    with tempfile.TemporaryFile() as rows:

        def write(texts: Sequence[str], vectors: Array) -> None:
            nonlocal count, last
            rows.write(np.ascontiguousarray(vectors).tobytes())
            count, last = count + len(vectors), vectors[:0]

        yield write
        if last is not None:
            shape = (count, *last.shape[1:])
            header = {"descr": npy.dtype_to_descr(last.dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(output, header)
            rows.seek(0)
            shutil.copyfileobj(rows, output)


@contextmanager
def _jsonl_writer(output: IO[bytes]) -> Iterator[_Write]:
    def write(texts: Sequence[str], vectors: Array) -> None:
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            output.write(json.dumps({"text": text, "embedding": vector}).encode() + b"\n")

    yield write


@contextmanager
def _parquet_writer(output: IO[bytes]) -> Iterator[_Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ValueError("Writing Parquet needs pyarrow: pip install 'ssmoe-embed[parquet]'.") from None
    file: Any = None

    def write(texts: Sequence[str], vectors: Array) -> None:
        nonlocal file
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1]
        )
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        table = pa.table({"text": pa.array(clean, pa.string()), "embedding": column})
        file = pq.ParquetWriter(output, table.schema) if file is None else file
        file.write_table(table)

    yield write
    if file is not None:
        file.close()


_WRITERS: dict[VectorFormat, Callable[[IO[bytes]], AbstractContextManager[_Write]]] = {
    VectorFormat.NPY: _npy_writer,
    VectorFormat.JSONL: _jsonl_writer,
    VectorFormat.PARQUET: _parquet_writer,
}
