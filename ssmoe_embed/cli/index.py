"""`ssmoe index`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from ssmoe_embed.cli import options as opts
from ssmoe_embed.cli.images import images_of
from ssmoe_embed.cli.options import ClusterJob, on_ray, shards_at
from ssmoe_embed.search.manifest import RECALL, BusyIndexError, Manifest
from ssmoe_embed.search.reading.records import KINDS, WORDS

if TYPE_CHECKING:
    from ssmoe_embed.distributed.engine import ModelReference
    from ssmoe_embed.distributed.shards import ShardFolder
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.reading.corpus import Corpus

OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"Folder, hub id or recipe name; by default the index's own, or {opts.DEFAULT_MODEL} for a new index.",
    ),
]


class IndexCommand(TyperCommand):
    """A command whose `--delete` may stand without an id, to delete what passes `--filter`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        bare = {"--delete": "--delete-filtered"}
        following = pairwise([*args, "-"])
        return super().parse_args(
            ctx, [bare.get(arg, arg) if after.startswith("-") else arg for arg, after in following]
        )


def index(
    corpus: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CORPUS]…",
            help=f"Files ({', '.join(KINDS)}) and folders of such files; leave it out to only change an index.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the index; created if it does not exist.")
    ] = Path("ssmoe-index"),
    model: OwnModel = None,
    kind: Annotated[
        str | None,
        typer.Option(help="auto, flat, hnsw, ivf, ivfpq, sq8 or binary.  [default: auto, by the number of vectors]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of the stored vectors: float32 or float16.  [default: float32]")
    ] = None,
    recall: Annotated[
        float,
        typer.Option(min=0.5, max=1.0, help="Share of the ten nearest neighbours that an approximate index finds."),
    ] = RECALL,
    on_error: opts.OnBroken = "stop",
    encoding: opts.TextEncoding = "utf-8",
    field: opts.TextField = "text",
    words: Annotated[int, typer.Option(min=1, help="Maximum number of words per passage.")] = WORDS,
    images: Annotated[
        bool, typer.Option("--images", help="Index images beside texts; a corpus of nothing but images needs it not.")
    ] = False,
    list_skipped: Annotated[
        bool, typer.Option("--list-skipped", help="Name every file of a folder that is skipped, with the reason.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that are not in CORPUS.")] = False,
    delete: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ID]",
            help="Document to remove; without ID, all that match --filter. May be repeated.",
        ),
    ] = None,
    delete_filtered: Annotated[bool, typer.Option("--delete-filtered", hidden=True)] = False,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="Documents that --delete removes, as in `ssmoe search`; may be repeated.",
        ),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild the approximate index, also as another --kind.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file against its checksum.")] = False,
    method: opts.Method = None,
    prompt: opts.Prompt = None,
    alpha: opts.Alpha = None,
    engine: opts.Engine = "local",
    workers: opts.Workers = None,
    device: opts.Device = None,
    batch_size: opts.BatchSize = 32,
    quiet: opts.Quiet = False,
) -> None:
    """Create or change an index of documents, for `ssmoe search --index`.

    If it is interrupted, the index stays as it was, and the same command resumes where it stopped. Documents whose id is
    already in the index are replaced, and encoded again only if their text has changed.

    Example: ssmoe index notes/ mail.jsonl --output notes-index
    """
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.reading.corpus import read_documents

    if delete_filtered != bool(conditions):
        raise ValueError("--delete without an ID and --filter go together: --delete --filter path=notes/old.md.")
    if not corpus:
        _check_idle(delete or delete_filtered or rebuild or verify, prune, kind is not None and not rebuild)
    clustered = on_ray(engine, workers)
    source: Corpus | ShardFolder | None = shards_at(corpus[0]) if corpus and len(corpus) == 1 else None
    if corpus and source is None:
        wanted, model = images_of(corpus, images, model, Manifest.exists(output))
        source = read_documents(*corpus, on_error=on_error, field=field, words=words, encoding=encoding, images=wanted)
    settings = opts.given(method=method, prompt=prompt, alpha=alpha)
    try:
        with _unless_empty(output):
            if source is not None:
                made = _opened(output, source, model, settings, opts.given(kind=kind, dtype=dtype), device, quiet)
            else:
                made = SemanticIndex.open(output)
            cluster = ClusterJob(_reference(output, model, settings, device), workers) if clustered else None
            _change(made, source, cluster, batch_size, recall, prune, quiet)
        _tell_skipped(source, list_skipped)
        if delete or conditions:
            _delete(made, delete or [], conditions or [], recall)
        if rebuild:
            made.rebuild(kind=kind, progress=not quiet, recall=recall)
    except KeyboardInterrupt:
        typer.echo("Interrupted: the index is as it was; the same command resumes where this one stopped.", err=True)
        raise
    if verify:
        _verify(made)
    if not quiet:
        _report(made)


@contextmanager
def _unless_empty(folder: Path) -> Iterator[None]:
    """Remove the index that the block made if it fails before anything was encoded; what was, a later run goes on with."""
    before = set(folder.iterdir()) if folder.is_dir() else None
    there = Manifest.exists(folder)
    try:
        yield
    except (BusyIndexError, FileExistsError):  # another process made it
        raise
    except Exception:
        work = [*folder.glob("vectors-*"), *folder.glob("shards/part-*")]
        if not there and Manifest.exists(folder) and Manifest.read(folder).generation == 1 and not work:
            for path in set(folder.iterdir()) - (before or set()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if before is None:
                folder.rmdir()
        raise


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
        raise ValueError("The --kind of an existing index is changed with --rebuild.")


def _delete(index: SemanticIndex, ids: list[str], conditions: list[str], recall: float) -> None:
    """Remove documents by id and by filters.

    Raises:
        ValueError: An id is not there, or nothing passes the filters; then nothing is removed.
    """
    from ssmoe_embed.search import parse_filters

    missing = [name for name in ids if name not in index]
    if missing:
        raise ValueError(
            f"There is no document {missing[0]!r} in {index.folder}"
            + (f", nor {len(missing) - 1} others that were named" if len(missing) > 1 else "")
            + "; nothing was removed. `ssmoe search --json` shows ids; whole files go with --delete --filter path=FILE."
        )
    chosen = index.ids(parse_filters(conditions)) if conditions else []
    if conditions and not chosen:
        raise ValueError(f"No document in {index.folder} passes {' and '.join(conditions)}; nothing was removed.")
    removed = index.delete(dict.fromkeys([*ids, *chosen]), recall=recall)
    typer.echo(f"{removed} document{'s' * (removed != 1)} removed", err=True)


def _tell_skipped(source: Corpus | ShardFolder | None, list_skipped: bool) -> None:
    """Tell of the lines and files that were left out."""
    from ssmoe_embed.search.reading.corpus import Corpus

    if not isinstance(source, Corpus):
        return
    for report in source.reports:
        typer.echo(f"Skipped: {report}", err=True)
    if source.skipped > len(source.reports):
        typer.echo(f"… and {source.skipped - len(source.reports)} more lines", err=True)
    if source.skipped_files:
        hint = "" if list_skipped else "; --list-skipped names them"
        typer.echo(source.skipped_summary() + hint, err=True)
    for path, reason in source.skipped_files if list_skipped else ():
        typer.echo(f"  {path}: {reason}", err=True)


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
    from ssmoe_embed.distributed.shards import ShardFolder, check_shards
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.search.fingerprint import model_fingerprint
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.reading.corpus import Corpus

    if not Manifest.exists(output):
        if isinstance(source, Corpus):
            next(iter(source))  # a corpus without a document is told before there is an index without one
        name = model or opts.DEFAULT_MODEL
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
    from ssmoe_embed.distributed.engine import ModelReference

    own = Manifest.read(output).reference
    if model is None:
        settings = own.get("settings", {}) | settings
    return ModelReference(model or own.get("name", opts.DEFAULT_MODEL), settings, device)


def open_with_model(
    folder: Path, model: str | None, settings: dict[str, Any], device: str | None, quiet: bool
) -> SemanticIndex:
    """An index with the model that was named, or else with the one it was made with."""
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.search.index import SemanticIndex

    reference = Manifest.read(folder).reference
    name = model or reference.get("name", opts.DEFAULT_MODEL)
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
    """Add the corpus, and say what became of its documents."""
    from ssmoe_embed.distributed.shards import ShardFolder, add_shards
    from ssmoe_embed.search.writing import AddCounts

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
    line = f"{index.folder}: {len(index):,} documents, {info['live']:,} vectors of {info['dimension']} dimensions, "
    line += f"{search.get('kind', 'flat')} ({measured}), {info['bytes'] / 1e6:.1f} MB"
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)
    if search.get("recall", 1.0) < search.get("goal", 0.0):
        typer.echo(f"The recall is below {search['goal']}; another --kind with --rebuild may do better.", err=True)
