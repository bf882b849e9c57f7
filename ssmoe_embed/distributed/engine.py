"""Encoding as a Ray Data job: an actor pool with one model a worker, whose results are Parquet shards.

Ray Data: https://docs.ray.io/en/latest/data/data.html
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ssmoe_embed.distributed.jobs import Encoding, ModelReference, ShardEncoder, fingerprint_of
from ssmoe_embed.distributed.shards import Shard, ShardFolder, TextRow

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
            known = fingerprint or _remote_fingerprint(ray, reference)
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


def _remote_fingerprint(ray: Any, reference: ModelReference) -> dict[str, Any]:
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0))
    return dict(ray.get(ray.remote(fingerprint_of).options(num_gpus=gpus).remote(reference)))


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
            ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
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
