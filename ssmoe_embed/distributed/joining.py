"""Shards that were encoded elsewhere become part of an index, or one file of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import tee
from typing import IO, Any

import numpy as np

from ssmoe_embed.distributed.shards import ShardFolder
from ssmoe_embed.embedding.streaming import VectorFormat, write_stream
from ssmoe_embed.search.errors import WrongModelError
from ssmoe_embed.search.fingerprint import describe, difference
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.writing import AddCounts


def add_shards(index: SemanticIndex, folder: ShardFolder, **options: Any) -> AddCounts:
    """Add the documents of finished shards to an index, with their vectors; memory is that of one shard.

    Empty texts, which are no documents, are left out.

    Args:
        index: Made with the model that made the shards.
        folder: The shards.
        **options: For `SemanticIndex.add_vectors`: `recall`, `prune`, `progress`.

    Raises:
        WrongModelError: The shards were made with another model.
        ValueError: They were not encoded as documents of an index are.
    """
    check_shards(folder, index.fingerprint)
    rows = ((row, vector) for part in folder.read() for row, vector in zip(*part, strict=True) if row.text.strip())
    first, second = tee(rows)  # in step with each other, so nothing piles up between them
    documents = (row.document() for row, _ in first)
    return index.add_vectors(documents, (vector for _, vector in second), **options)


def check_shards(folder: ShardFolder, fingerprint: Mapping[str, Any]) -> None:
    """Refuse shards whose vectors are not those that the model of an index gives.

    Args:
        folder: The shards.
        fingerprint: That model's.

    Raises:
        WrongModelError: The shards were made with another model.
        ValueError: They were not encoded as documents of an index are.
    """
    made_by = folder.made_by()
    reason = difference(fingerprint, made_by["model"])
    if reason:
        raise WrongModelError(
            f"The vectors in {folder.path} were made with {describe(made_by['model'])}, and the index is for "
            f"{describe(fingerprint)}: {reason}. Index them with the model that made them (--model, --method, …)."
        )
    arguments = {
        name: value for name, value in made_by["encoding"]["arguments"].items() if name != "normalize_embeddings"
    }
    prompted = not made_by["encoding"]["as_documents"] and made_by["model"]["prompts"]
    if arguments or prompted:
        reason = ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "without the model's prompts"
        raise ValueError(
            f"The vectors in {folder.path} were made with {reason}, unlike those of an index; index the corpus itself with "
            "`ssmoe index CORPUS --engine ray`."
        )


def write_shards(folder: ShardFolder, output: IO[bytes], kind: VectorFormat) -> int:
    """Write the vectors of finished shards as one file; returns how many there are."""

    def parts() -> Iterator[tuple[list[str], np.ndarray[Any, Any]]]:
        for rows, vectors in folder.read():
            yield [row.full_text for row in rows], vectors

    return write_stream(parts(), output, kind)
