"""The file of vectors, unit vectors one after the other that are only ever appended to, and what is on its way into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.data import Document
from ssmoe_embed.search.manifest import RECOVERY, UNHARMED, DamagedIndexError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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


def paired(documents: Iterable[Document], vectors: Iterable[Any]) -> Iterator[tuple[Document, Any]]:
    """Each document with its vector."""
    for number, (document, vector) in enumerate(zip_longest(documents, vectors)):
        if document is None or vector is None:
            raise ValueError(
                f"After {number} pairs there is no {'document' if document is None else 'vector'} left; give one vector for "
                "each document."
            )
        yield _checked(document), vector


def encoder(model: SentenceTransformer, batch_size: int) -> Callable[[Sequence[Document]], Array]:
    """What makes the vectors `[n,D]` of documents: of their texts, their pictures, or both where their metadata ask for it.

    Raises:
        ValueError: When it is called: there is a picture, and the model reads texts only.
    """

    def encode(documents: Sequence[Document]) -> Array:
        inputs: list[Any] = []
        for document in documents:
            if document.image is None:
                inputs.append(document.full_text)
                continue
            if "image" not in getattr(model, "modalities", ()):
                raise ValueError(
                    f"{document.image} is an image, and this model reads texts only; take one that reads images, such as "
                    "ssmoe/tiny-clip."
                )
            named = document.metadata["image"].get("named", False)
            inputs.append({"image": document.image, "text": document.text} if named else document.image)
        return model.encode_document(inputs, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)

    return encode


def given(pairs: Sequence[tuple[Document, Any]]) -> Callable[[Sequence[Document]], Array]:
    """Vectors that were made elsewhere, in place of an encoder; of documents alike the first one's counts."""
    vectors = {document.content: vector for document, vector in reversed(pairs)}
    return lambda documents: np.stack([np.asarray(vectors[document.content]) for document in documents])


def chunks(documents: Iterable[Document], size: int, progress: bool) -> Iterator[list[Document]]:
    """The documents, so many at a time, with a bar over what is known of their number."""
    total, measured = getattr(documents, "size", None), hasattr(documents, "position")
    if total is None and isinstance(documents, Sized):
        total = len(documents)
    unit_name = getattr(documents, "unit", "document")
    iterator = map(_checked, documents)
    with tqdm(total=total, desc="Encoding", unit=unit_name, unit_scale=measured, disable=not progress) as bar:
        while chunk := list(islice(iterator, size)):
            yield chunk
            bar.update(getattr(documents, "position", 0) - bar.n if measured else len(chunk))


def _checked(document: Document) -> Document:
    if not isinstance(document, Document):
        raise TypeError(f"{document!r} is no Document; give an index Document(id, text).")
    return document
