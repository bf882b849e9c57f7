"""`ssmoe index`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ssmoe_embed.cli.clusters import ClusterJob, on_ray, shards_at
from ssmoe_embed.cli.options import (
    DEFAULT_MODEL,
    Alpha,
    BatchSize,
    Device,
    Engine,
    Method,
    Prompt,
    Quiet,
    Workers,
    given,
)
from ssmoe_embed.search.manifest import RECALL, Manifest
from ssmoe_embed.search.passages import WORDS

if TYPE_CHECKING:
    from ssmoe_embed.distributed.jobs import ModelReference
    from ssmoe_embed.distributed.shards import ShardFolder
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.reading import Corpus

OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"Folder, hub id or recipe name; by default the index's own, for a new one {DEFAULT_MODEL}.",
    ),
]


def index(
    corpus: Annotated[
        Path | None,
        typer.Argument(
            help="File (.txt, .jsonl, .csv, .parquet, .md) or folder of .txt and .md files; none to change an index only."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the index; made if it is not there.")
    ] = Path("ssmoe-index"),
    model: OwnModel = None,
    kind: Annotated[
        str | None,
        typer.Option(help="auto, flat, hnsw, ivf, ivfpq, sq8 or binary.  [default: auto, by the number of vectors]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of stored vectors: float32 or float16.  [default: float32]")
    ] = None,
    recall: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of the ten nearest that an approximate kind should find.")
    ] = RECALL,
    on_error: Annotated[str, typer.Option(help="A broken line ends it (stop) or is left out (skip).")] = "stop",
    field: Annotated[str, typer.Option(help="Where a record holds its text.")] = "text",
    words: Annotated[int, typer.Option(min=1, help="Words of a passage at most.")] = WORDS,
    prune: Annotated[bool, typer.Option("--prune", help="Remove the documents that CORPUS does not have.")] = False,
    delete: Annotated[list[str] | None, typer.Option(metavar="ID", help="Remove a document; may be repeated.")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make the approximate index anew, also as another --kind.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and compare it with its checksums.")
    ] = False,
    method: Method = None,
    prompt: Prompt = None,
    alpha: Alpha = None,
    engine: Engine = "local",
    workers: Workers = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    quiet: Quiet = False,
) -> None:
    """Make or change an index of documents, to be searched with `ssmoe search --index`.

    Interrupted, it leaves the index as it was, and the same command goes on where it stopped. Documents whose id is there
    already are replaced, and encoded only if their text is new.

    Example: ssmoe index notes/ --output notes-index
    """
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.reading import read_documents

    if corpus is None:
        _check_idle(delete or rebuild or verify, prune, kind is not None and not rebuild)
    clustered = on_ray(engine, workers)
    source: Corpus | ShardFolder | None = shards_at(corpus)
    if corpus is not None and source is None:
        source = read_documents(corpus, on_error=on_error, field=field, words=words)
    settings = given(method=method, prompt=prompt, alpha=alpha)
    if corpus is not None:
        made = _opened(output, source, model, settings, given(kind=kind, dtype=dtype), device, quiet)
    else:
        made = SemanticIndex.open(output)
    try:
        cluster = ClusterJob(_reference(output, model, settings, device), workers) if clustered else None
        _change(made, source, cluster, batch_size, recall, prune, quiet)
        if delete:
            typer.echo(f"{made.delete(delete, recall=recall)} of {len(delete)} documents removed", err=True)
        if rebuild:
            made.rebuild(kind=kind, progress=not quiet, recall=recall)
    except KeyboardInterrupt:
        typer.echo("Interrupted: the index is as it was; the same command goes on where this one stopped.", err=True)
        raise
    if verify:
        _verify(made)
    if not quiet:
        _report(made)


def _check_idle(something: object, prune: bool, other_kind: bool) -> None:
    """Refuse options that do nothing without a corpus.

    Raises:
        ValueError: There are such.
    """
    if prune:
        raise ValueError("--prune removes the documents that CORPUS does not have; name it.")
    if not something:
        raise ValueError("There is nothing to do; name a CORPUS, or pass --delete ID, --rebuild or --verify.")
    if other_kind:
        raise ValueError("--kind of an index that is there is changed with --rebuild.")


def _opened(
    output: Path,
    source: Corpus | ShardFolder | None,
    model: str | None,
    settings: dict[str, Any],
    storage: dict[str, str],
    device: str | None,
    quiet: bool,
) -> SemanticIndex:
    """The index with its model: the one that is there, or a new one."""
    from ssmoe_embed.distributed.joining import check_shards
    from ssmoe_embed.distributed.shards import ShardFolder
    from ssmoe_embed.hub.loading import load
    from ssmoe_embed.search.fingerprint import model_fingerprint
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.reading import Corpus

    if not Manifest.exists(output):
        if isinstance(source, Corpus):
            next(iter(source))  # a corpus without a document is told before there is an index without one
        name = model or DEFAULT_MODEL
        encoder = load(name, device=device, progress=not quiet, **settings)
        if isinstance(source, ShardFolder):
            check_shards(source, model_fingerprint(encoder))  # before there is an index of the wrong model
        return SemanticIndex.create(output, encoder, reference={"name": name, "settings": settings}, **storage)
    manifest = Manifest.read(output)
    for setting, value in storage.items():
        if getattr(manifest, setting) != value:
            advice = "change it with --rebuild and no CORPUS" if setting == "kind" else "index into another folder"
            raise ValueError(
                f"The index in {output} has {setting}={getattr(manifest, setting)!r}, not {value!r}; {advice}."
            )
    return open_with_model(output, model, settings, device, quiet)


def _reference(output: Path, model: str | None, settings: dict[str, Any], device: str | None) -> ModelReference:
    """How the workers of a cluster load the model."""
    from ssmoe_embed.distributed.jobs import ModelReference

    own = Manifest.read(output).reference
    if model is None:
        settings = own.get("settings", {}) | settings
    return ModelReference(model or own.get("name", DEFAULT_MODEL), settings, device)


def open_with_model(
    folder: Path, model: str | None, settings: dict[str, Any], device: str | None, quiet: bool
) -> SemanticIndex:
    """An index with the model that was named, or else with the one it was made with."""
    from ssmoe_embed.hub.loading import load
    from ssmoe_embed.search.index import SemanticIndex

    reference = Manifest.read(folder).reference
    name = model or reference.get("name", DEFAULT_MODEL)
    if model is None:
        settings = reference.get("settings", {}) | settings
    return SemanticIndex.open(folder, load(name, device=device, progress=not quiet, **settings))


def _change(
    index: SemanticIndex,
    source: Corpus | ShardFolder | None,
    cluster: ClusterJob | None,
    batch_size: int,
    recall: float,
    prune: bool,
    quiet: bool,
) -> None:
    """Add the corpus, and say what became of it."""
    from ssmoe_embed.distributed.joining import add_shards
    from ssmoe_embed.distributed.shards import ShardFolder
    from ssmoe_embed.search.documents import AddCounts

    if source is None:
        return
    made = "vectors taken over" if isinstance(source, ShardFolder) else "texts encoded"
    if isinstance(source, ShardFolder):
        counts = add_shards(index, source, recall=recall, progress=not quiet, prune=prune)
    else:
        counts = cluster.add(index, source, batch_size, recall, progress=not quiet) if cluster else AddCounts()
        if cluster is None or prune:  # what a cluster encoded is not encoded again
            here = index.add(source, batch_size=batch_size, progress=not quiet, recall=recall, prune=prune)
            counts = replace(counts, removed=here.removed) if cluster else here
        for report in source.reports:
            typer.echo(f"Skipped: {report}", err=True)
        if source.skipped > len(source.reports):
            typer.echo(f"… and {source.skipped - len(source.reports)} more lines", err=True)
    if not quiet:
        shown = [f"{value} {name}" for name, value in vars(counts).items() if value and name != "encoded"]
        typer.echo(f"{', '.join(shown) or 'nothing to add'}; {counts.encoded} {made}", err=True)


def _verify(index: SemanticIndex) -> None:
    """Check every file.

    Raises:
        ValueError: Something is wrong.
    """
    wrong = index.verify()
    if wrong:
        raise ValueError("\n".join([f"The index in {index.folder} is damaged:", *wrong]))
    typer.echo("Every file matches its checksum.", err=True)


def _report(index: SemanticIndex) -> None:
    """What the index is by now."""
    info = index.info()
    search = info["search"]
    measured = (
        "exact"
        if "width" not in search
        else (f"recall@10 {search['recall']:.3f} on {search['queries']} of its own vectors")
    )
    line = f"{index.folder}: {len(index):,} documents, {info['live']:,} vectors of {info['dimension']} numbers, "
    line += f"{search.get('kind', 'flat')} ({measured}), {info['bytes'] / 1e6:.1f} MB"
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)
    if search.get("recall", 1.0) < search.get("goal", 0.0):
        typer.echo(f"The recall is below {search['goal']}; another --kind with --rebuild may do better.", err=True)
