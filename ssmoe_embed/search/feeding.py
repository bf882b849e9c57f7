"""Documents and vectors on their way into an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ssmoe_embed.data.documents import Document
from ssmoe_embed.search.vectors import Array

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def paired(documents: Iterable[Document], vectors: Iterable[Any]) -> Iterator[tuple[Document, Any]]:
    """Each document with its vector."""
    for number, (document, vector) in enumerate(zip_longest(documents, vectors)):
        if document is None or vector is None:
            raise ValueError(
                f"After {number} pairs there is no {'document' if document is None else 'vector'} left; give one vector for "
                "each document."
            )
        yield _checked(document), vector


def encoded(model: SentenceTransformer, documents: Sequence[Document]) -> list[Any]:
    """What a model reads of documents: their texts, or the paths of their pictures.

    Raises:
        ValueError: There is a picture, and the model reads texts only.
    """
    pictures = [document for document in documents if document.image is not None]
    if pictures and "image" not in getattr(model, "modalities", ()):
        raise ValueError(
            f"{pictures[0].image} is an image, and this model reads texts only; take one that reads images, such as "
            "ssmoe/tiny-clip."
        )
    return [_input(document) for document in documents]


def _input(document: Document) -> Any:
    """What a model reads of one document: its text, its picture, or both where its metadata ask for it."""
    if document.image is None:
        return document.full_text
    named = document.metadata["image"].get("named", False)
    return {"image": document.image, "text": document.text} if named else document.image


class Given:
    """Vectors that were made elsewhere, in place of an encoder."""

    def __init__(self, pairs: Sequence[tuple[Document, Any]]) -> None:
        self._vectors = {document.content: vector for document, vector in reversed(pairs)}

    def __call__(self, documents: Sequence[Document]) -> Array:
        """The vectors `[n,D]` of some of the documents."""
        return np.stack([np.asarray(self._vectors[document.content]) for document in documents])


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
