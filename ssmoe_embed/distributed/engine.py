"""What is to be encoded, how, and the worker that does it on a machine of a cluster."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from ssmoe_embed.data import Document
from ssmoe_embed.distributed.shards import Shard, ShardFolder, TextRow, add_shards
from ssmoe_embed.embedding.streaming import CHUNK_BATCHES, check_precision
from ssmoe_embed.hub.models import load
from ssmoe_embed.search.fingerprint import check_model, model_fingerprint
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.manifest import WrongModelError
from ssmoe_embed.search.writing import AddCounts


@dataclass(frozen=True)
class ModelReference:
    """How every worker loads the model.

    Attributes:
        name: Folder (which every worker can read), hub id or recipe name.
        settings: Fields of `EmbeddingSettings`, and other keywords of `ssmoe_embed.load`, as JSON values.
        device: Where a worker runs it; by default the fastest device it has.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    def load(self) -> SentenceTransformer:
        """The model."""
        return load(self.name, device=self.device, progress=False, **self.settings)


@dataclass(frozen=True)
class Encoding:
    """How texts become vectors.

    Attributes:
        batch_size: Batch size.
        as_documents: Whether texts are documents to be searched, with the model's prompt for such.
        arguments: Further keywords of `model.encode`, as JSON values.
    """

    batch_size: int = 32
    as_documents: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.arguments)

    @property
    def chunk(self) -> int:
        """Texts that are encoded by one call of the model."""
        return self.batch_size * CHUNK_BATCHES

    def encode(self, model: SentenceTransformer, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Vectors `[B,D]` of texts, chunk by chunk, which is how `encode_stream` and an index do it in one process."""
        encode = model.encode_document if self.as_documents else model.encode
        read = list(dict.fromkeys(texts)) if self.as_documents else list(texts)  # an index encodes a text once
        parts = [
            encode(
                read[start : start + self.chunk],
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                **self.arguments,
            )
            for start in range(0, len(read), self.chunk)
        ]
        vectors = np.concatenate(parts)
        if not self.as_documents:
            return vectors
        rows = {text: row for row, text in enumerate(read)}
        return vectors[[rows[text] for text in texts]]

    def digest(self, fingerprint: Mapping[str, Any]) -> str:
        """A short text that names the model and everything here that changes vectors."""
        content = {"model": fingerprint, **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_of(reference: ModelReference) -> dict[str, Any]:
    """The fingerprint of a model, found where the model will run."""
    return model_fingerprint(reference.load())


class ShardEncoder:
    """One worker with one model: Ray Data calls it with the names of shards."""

    def __init__(
        self, folder: str, reference: ModelReference, fingerprint: Mapping[str, Any], encoding: Encoding
    ) -> None:
        """Load the model and make sure that it is the one that was meant.

        Raises:
            WrongModelError: Under that name this machine has another one.
        """
        self._folder = ShardFolder(folder)
        self._encoding = encoding
        self._model = reference.load()
        try:
            check_model(self._model, fingerprint, Path(folder))
        except WrongModelError as error:
            raise WrongModelError(f"Under the name {reference.name!r} a worker has another model. {error}") from None

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Encode shards; returns their names and how many texts each has."""
        names = [str(name) for name in batch["name"]]
        counts = []
        for name in names:
            texts = self._folder.waiting(name)
            self._folder.finish(name, self._encoding.encode(self._model, texts))
            counts.append(len(texts))
        return {"name": names, "texts": counts}


_OBJECT_STORE = 128 * 2**20
"""Bytes of shared memory of a cluster that is started here: only names of shards go through it."""


def encode_on_ray(
    rows: Iterable[TextRow],
    folder: str | Path,
    reference: ModelReference,
    *,
    workers: int | None = None,
    encoding: Encoding | None = None,
    shard_size: int | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ShardFolder:
    """Encode texts on the workers of a Ray cluster, into Parquet shards.

    Joins the cluster that `RAY_ADDRESS` names or that runs on this machine; else starts one here, for as long as it takes.
    Interrupted, it goes on with the shards that are not finished when it is called with the same arguments. Shards of the
    same texts by the same model are never made twice.

    Args:
        rows: The texts, read once and never held in memory all at once.
        folder: Where the shards go; on more than one machine a folder that all of them share.
        reference: How every worker loads the model.
        workers: How many models run at once; by default one a GPU, or one a CPU core where there is none.
        encoding: How texts become vectors.
        shard_size: Texts of a shard; by default 32 batches.
        fingerprint: The model's, where it is known; by default a worker finds out.
        progress: Show a progress bar.

    Returns:
        The finished folder.

    Raises:
        ImportError: Ray is not installed.
        ValueError: There is no text, no cluster at `RAY_ADDRESS`, or a worker failed; what was finished stays.
    """
    encoding = encoding or Encoding()
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} would do nothing; choose at least 1.")
    place = ShardFolder(Path(folder).resolve())
    if Path(reference.name).is_dir():
        reference = replace(reference, name=str(Path(reference.name).resolve()))  # workers have other working folders
    with _cluster(workers) as ray:
        try:
            # the driver needs no model, so that the machine that starts the job needs no accelerator
            gpus = min(1.0, ray.cluster_resources().get("GPU", 0))
            known = fingerprint or dict(ray.get(ray.remote(fingerprint_of).options(num_gpus=gpus).remote(reference)))
            digest = encoding.digest(known)
            shards, waiting = place.plan(rows, shard_size or encoding.chunk, digest)
            if not shards:
                raise ValueError("There is no text to encode; the input is empty.")
            arguments = (str(place.path), reference, known, encoding)
            total, left = (sum(shard.documents for shard in part) for part in (shards, waiting))
            with tqdm(total=total, initial=total - left, desc="Encoding", unit="text", disable=not progress) as bar:
                for finished in _run(ray, waiting, workers, arguments):
                    bar.update(finished)
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"A Ray worker failed: {_reason(error).rstrip('.')}. The finished shards stay in {place.path}; the same "
                "command resumes with the others."
            ) from error
    place.complete(shards, {"model": known, "encoding": asdict(encoding)})
    return place


def add_on_ray(
    index: SemanticIndex,
    documents: Iterable[Document],
    reference: ModelReference,
    *,
    workers: int | None,
    batch_size: int,
    recall: float,
    progress: bool,
) -> AddCounts:
    """Encode the documents that an index does not have yet on a Ray cluster, and add them with their vectors.

    The shards lie in the index's folder until they are part of it, so that an interrupted job goes on.
    """
    new = (one for one in documents if one.id not in index or index[one.id] != one)
    first = next(new, None)
    if first is None:
        return AddCounts()
    shards = encode_on_ray(
        (TextRow.of(one) for one in chain([first], new)),
        index.folder / "shards",
        reference,
        workers=workers,
        encoding=Encoding(batch_size, as_documents=True),
        fingerprint=index.fingerprint,
        progress=progress,
    )
    counts = add_shards(index, shards, recall=recall)
    shutil.rmtree(shards.path)
    return counts


def _run(ray: Any, shards: Sequence[Shard], workers: int | None, arguments: tuple[Any, ...]) -> Iterator[int]:
    """Encode shards; yields how many texts each finished one has."""
    if not shards:
        return
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    count = min(workers or gpus or cpus, len(shards))
    names = ray.data.from_items([{"name": shard.name} for shard in shards], override_num_blocks=len(shards))
    done = names.map_batches(
        ShardEncoder,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=max(1, cpus // count) if count <= cpus else cpus / count,
        num_gpus=min(1.0, gpus / count),
    )
    for row in done.iter_rows():
        yield int(row["texts"])


@contextmanager
def _cluster(workers: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster; one that is started here ends with the block."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # read when Ray starts; what matters is raised
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError(f"The engine ray needs {error.name}: pip install 'ssmoe-embed[ray]'.") from None
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError as error:
            if named := os.environ.get("RAY_ADDRESS"):
                raise ValueError(
                    f"There is no Ray cluster at RAY_ADDRESS={named!r} ({error}); start it, or unset RAY_ADDRESS to work on "
                    "this machine alone."
                ) from None
            cpus = max(workers or 1, os.cpu_count() or 1)
            try:
                ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
            except Exception as failed:  # Ray raises this very class
                raise ValueError(
                    f"Ray could not start on this machine: {_reason(failed)} Try again when it has less to do, or name a "
                    "running cluster in RAY_ADDRESS."
                ) from failed
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised, too
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _reason(error: BaseException) -> str:
    """The worker's own error, without the frames of both processes."""
    cause = getattr(error, "cause", None)  # what a task raised; of an actor's start only the text is known
    if cause is not None:
        return _reason(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
