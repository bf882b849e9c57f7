"""Documents and vectors in Parquet files that are either whole or not there.

A folder of shards holds `part-<number>-<hash>.parquet` (`id`, `text`, `title`, `source`, `metadata`, `embedding`), the hash
being that of the documents and the model, and in the end `shards.json`, which names the parts in order. Without it the
work is not finished; parts that it does not name are of no account.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, tee
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.data import Document
from ssmoe_embed.embedding.streaming import VectorFormat, write_stream
from ssmoe_embed.search.fingerprint import describe, difference
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.manifest import WrongModelError
from ssmoe_embed.search.writing import AddCounts

_MANIFEST = "shards.json"
_INPUTS = "inputs"


class TextRow(NamedTuple):
    """One text with what is known of it; unlike a `Document` it may be empty."""

    id: str
    text: str
    title: str | None = None
    source: str | None = None
    metadata: str = "{}"

    @classmethod
    def of(cls, document: Document) -> TextRow:
        """A document as a row."""
        metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
        return cls(document.id, document.text, document.title, document.source, metadata)

    def document(self) -> Document:
        """The row as a document."""
        return Document(self.id, self.text, json.loads(self.metadata), self.title, self.source)

    @property
    def full_text(self) -> str:
        """Title and text together: what is encoded."""
        return f"{self.title}. {self.text}" if self.title else self.text


class Shard(NamedTuple):
    """Some of the documents: the name of their file, which changes with its content, and how many there are."""

    name: str
    documents: int


class ShardFolder:
    """Where shards are."""

    def __init__(self, path: str | Path) -> None:
        """Name a folder, which need not be there yet."""
        self.path = Path(path)

    def plan(self, rows: Iterable[TextRow], size: int, digest: str) -> tuple[list[Shard], list[Shard]]:
        """Split rows into shards, and write down the texts of those that are not encoded yet.

        Memory is that of one shard.

        Returns:
            All shards in order, and those still to be encoded.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / _MANIFEST).unlink(missing_ok=True)
        shards: list[Shard] = []
        waiting: list[Shard] = []
        left = iter(rows)
        while part := list(islice(left, size)):
            shard = Shard(f"part-{len(shards):06d}-{_hash(part, digest)}.parquet", len(part))
            shards.append(shard)
            if not (self.path / shard.name).is_file():
                self._write(self.path / _INPUTS / shard.name, _table(part))
                waiting.append(shard)
        return shards, waiting

    def waiting(self, name: str) -> list[str]:
        """The texts of a shard that is to be encoded."""
        import pyarrow.parquet as pq

        return [row.full_text for row in _rows(pq.read_table(self.path / _INPUTS / name))]

    def finish(self, name: str, vectors: np.ndarray[Any, Any]) -> None:
        """Put the vectors `[n,D]` of a shard beside its texts."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(self.path / _INPUTS / name)
        values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        self._write(self.path / name, table.append_column("embedding", column))
        (self.path / _INPUTS / name).unlink()

    def complete(self, shards: Sequence[Shard], made_by: Mapping[str, Any]) -> None:
        """Say that these shards are all there is, and remove what is left of earlier work."""
        content = {"made_by": made_by, "shards": shards}
        with atomic_file(self.path / _MANIFEST) as file:
            file.write(json.dumps(content).encode())
        shutil.rmtree(self.path / _INPUTS, ignore_errors=True)
        names = {shard.name for shard in shards}
        for old in self.path.glob("part-*.parquet"):
            if old.name not in names:
                old.unlink()

    @property
    def is_complete(self) -> bool:
        """Whether there is finished work."""
        return (self.path / _MANIFEST).is_file()

    def made_by(self) -> dict[str, Any]:
        """What made the vectors of finished work."""
        return dict(self._manifest()["made_by"])

    def _manifest(self) -> dict[str, Any]:
        """What `complete` wrote.

        Raises:
            FileNotFoundError: There is nothing, or the work is not finished.
            ValueError: It cannot be read.
        """
        path = self.path / _MANIFEST
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"There is no finished set of shards in {self.path}; run the command that makes it again, which goes on "
                "where it stopped."
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); run the command that makes the shards again.") from None

    def shards(self) -> list[Shard]:
        """The shards of finished work, in order.

        Raises:
            FileNotFoundError: There are none, or the work is not finished.
            ValueError: A shard is missing.
        """
        shards = [Shard(*row) for row in self._manifest()["shards"]]
        for shard in shards:
            if not (self.path / shard.name).is_file():
                raise ValueError(f"{self.path / shard.name} is missing; run the command that makes the shards again.")
        return shards

    def read(self) -> Iterator[tuple[list[TextRow], np.ndarray[Any, Any]]]:
        """Rows and vectors `[n,D]` of finished work, shard by shard, in the order of the input."""
        import pyarrow.parquet as pq

        for shard in self.shards():
            table = pq.read_table(self.path / shard.name)
            column = table["embedding"].combine_chunks()
            yield _rows(table), column.flatten().to_numpy().reshape(len(table), column.type.list_size)  # [n·D] → [n,D]

    @staticmethod
    def _write(path: Path, table: Any) -> None:
        """Write a table, whole or not at all."""
        import pyarrow.parquet as pq

        with atomic_file(path) as file:
            pq.write_table(table, file)


def _rows(table: Any) -> list[TextRow]:
    """The rows of a table, without their vectors."""
    return [TextRow(*values) for values in zip(*(table[name].to_pylist() for name in TextRow._fields), strict=True)]


def _hash(rows: Sequence[TextRow], digest: str) -> str:
    """Of all that a shard's file holds."""
    summary = hashlib.sha256(digest.encode())
    for row in rows:
        summary.update(json.dumps(row).encode() + b"\n")
    return summary.hexdigest()[:12]


def _table(rows: Sequence[TextRow]) -> Any:
    """Rows as a table without vectors."""
    import pyarrow as pa

    columns = zip(TextRow._fields, zip(*rows, strict=True), strict=True)
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns})


def add_shards(index: SemanticIndex, folder: ShardFolder, **options: Any) -> AddCounts:
    """Add the documents of finished shards to an index, with their vectors; memory is that of one shard.

    Empty texts, which are no documents, are left out.

    Args:
        index: Made with the model that made the shards; see `check_shards`, which refuses others.
        folder: The shards.
        **options: For `SemanticIndex.add_vectors`: `recall`, `prune`, `progress`.
    """
    check_shards(folder, index.fingerprint)
    rows = ((row, vector) for part in folder.read() for row, vector in zip(*part, strict=True) if row.text.strip())
    first, second = tee(rows)  # in step with each other, so nothing piles up between them
    documents = (row.document() for row, _ in first)
    return index.add_vectors(documents, (vector for _, vector in second), **options)


def check_shards(folder: ShardFolder, fingerprint: Mapping[str, Any]) -> None:
    """Refuse shards whose vectors are not those that the model of an index gives.

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
    encoding = made_by["encoding"]
    arguments = {name: value for name, value in encoding["arguments"].items() if name != "normalize_embeddings"}
    prompted = not encoding["as_documents"] and made_by["model"]["prompts"]
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
