"""`--engine ray` of `ssmoe encode` and `ssmoe index`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.common.files import atomic_file

if TYPE_CHECKING:
    from ssmoe_embed.data import Document
    from ssmoe_embed.distributed.engine import Encoding, ModelReference
    from ssmoe_embed.distributed.shards import ShardFolder, TextRow
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.writing import AddCounts


class EngineKind(Choice):
    """Where texts are encoded."""

    LOCAL = "local"
    """In this process."""
    RAY = "ray"
    """On the workers of a Ray cluster."""


def on_ray(engine: str, workers: int | None) -> bool:
    """Whether to encode on a cluster.

    Raises:
        ValueError: There is no such engine, or workers were asked for without a cluster.
    """
    if EngineKind.parse(engine, "engine") is EngineKind.RAY:
        return True
    if workers is not None:
        raise ValueError("--workers goes with --engine ray; in one process there is one model.")
    return False


def encode_file(
    rows: Iterable[TextRow],
    output: Path,
    kind: str | None,
    reference: ModelReference,
    encoding: Encoding,
    *,
    workers: int | None,
    progress: bool,
) -> int:
    """Encode rows into a folder of shards, or by way of one into one file; returns how many vectors there are."""
    from ssmoe_embed.distributed.engine import encode_on_ray
    from ssmoe_embed.distributed.shards import write_shards
    from ssmoe_embed.embedding.streaming import VectorFormat

    whole = None if kind is None and not output.suffix else VectorFormat.parse(kind or output.suffix[1:], "format")
    folder = output if whole is None else output.with_name(f"{output.name}.shards")
    shards = encode_on_ray(rows, folder, reference, workers=workers, encoding=encoding, progress=progress)
    count = sum(shard.documents for shard in shards.shards())
    if whole is not None:
        with atomic_file(output) as stream:
            write_shards(shards, stream, whole)
        shutil.rmtree(folder)
    return count


@dataclass(frozen=True)
class ClusterJob:
    """Encoding the documents of an index on a cluster.

    Attributes:
        reference: How every worker loads the model.
        workers: How many models run at once.
    """

    reference: ModelReference
    workers: int | None

    def add(
        self, index: SemanticIndex, documents: Iterable[Document], batch_size: int, recall: float, *, progress: bool
    ) -> AddCounts:
        """Encode the documents that an index does not have yet, and add them with their vectors.

        The shards lie in the index's folder until they are part of it, so that an interrupted job goes on.
        """
        from ssmoe_embed.distributed.engine import Encoding, encode_on_ray
        from ssmoe_embed.distributed.shards import TextRow, add_shards
        from ssmoe_embed.search.writing import AddCounts

        new = (one for one in documents if one.id not in index or index[one.id] != one)
        first = next(new, None)
        if first is None:
            return AddCounts()
        shards = encode_on_ray(
            (TextRow.of(one) for one in chain([first], new)),
            index.folder / "shards",
            self.reference,
            workers=self.workers,
            encoding=Encoding(batch_size, as_documents=True),
            fingerprint=index.fingerprint,
            progress=progress,
        )
        counts = add_shards(index, shards, recall=recall)
        shutil.rmtree(shards.path)
        return counts


def shards_at(path: Path | None) -> ShardFolder | None:
    """The finished shards at a path, if that is what is there."""
    from ssmoe_embed.distributed.shards import ShardFolder

    folder = None if path is None else ShardFolder(path)
    return folder if folder is not None and folder.is_complete else None
