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
from typer import Argument, Option
from typer.core import TyperCommand

from ssmoe_embed.cli import options as opts
from ssmoe_embed.data import BUNDLED, BUNDLED_CLIP
from ssmoe_embed.search.manifest import RECALL, BusyIndexError, Manifest
from ssmoe_embed.search.reading.records import KINDS, WORDS

if TYPE_CHECKING:
    from ssmoe_embed.distributed.shards import ShardFolder
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.reading.corpus import Corpus


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
        Argument(
            metavar="[CORPUS]…",
            help=f"Files ({', '.join(KINDS)}) and folders of such files; leave it out to only change an index.",
        ),
    ] = None,
    output: Annotated[Path, Option("--output", "-o", help="Folder of the index; created if it does not exist.")] = Path(
        "ssmoe-index"
    ),
    model: opts.OwnModel = None,
    kind: Annotated[
        str | None,
        Option(help="auto, flat, hnsw, ivf, ivfpq, sq8 or binary.  [default: auto, by the number of vectors]"),
    ] = None,
    dtype: Annotated[
        str | None, Option(help="Dtype of the stored vectors: float32 or float16.  [default: float32]")
    ] = None,
    recall: Annotated[
        float,
        Option(min=0.5, max=1.0, help="Share of the ten nearest neighbours that an approximate index finds."),
    ] = RECALL,
    on_error: opts.OnBroken = "stop",
    encoding: opts.TextEncoding = "utf-8",
    field: opts.TextField = "text",
    words: Annotated[int, Option(min=1, help="Maximum number of words per passage.")] = WORDS,
    images: Annotated[
        bool, Option("--images", help="Index images beside texts; a corpus of nothing but images needs it not.")
    ] = False,
    list_skipped: Annotated[
        bool, Option("--list-skipped", help="Name every file of a folder that is skipped, with the reason.")
    ] = False,
    prune: Annotated[bool, Option("--prune", help="Remove documents that are not in CORPUS.")] = False,
    delete: Annotated[
        list[str] | None,
        Option(
            metavar="[ID]",
            help="Document to remove; without ID, all that match --filter. May be repeated.",
        ),
    ] = None,
    delete_filtered: Annotated[bool, Option("--delete-filtered", hidden=True)] = False,
    conditions: Annotated[
        list[str] | None,
        Option(
            "--filter",
            metavar="KEY=VALUE",
            help="Documents that --delete removes, as in `ssmoe search`; may be repeated.",
        ),
    ] = None,
    rebuild: Annotated[
        bool, Option("--rebuild", help="Rebuild the approximate index, also as another --kind.")
    ] = False,
    verify: Annotated[bool, Option("--verify", help="Check every file against its checksum.")] = False,
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
    from ssmoe_embed.search.reading.corpus import Corpus

    if delete_filtered != bool(conditions):
        raise ValueError("--delete without an ID and --filter go together: --delete --filter path=notes/old.md.")
    if not corpus:
        _check_idle(delete or delete_filtered or rebuild or verify, prune, kind is not None and not rebuild)
    clustered = opts.on_ray(engine, workers)
    reading = {"on_error": on_error, "field": field, "words": words, "encoding": encoding}
    source, own = _source(corpus, images, reading) if corpus else (None, None)
    chosen = opts.ChosenModel(
        model or (None if Manifest.exists(output) else own),
        opts.given(method=method, prompt=prompt, alpha=alpha),
        device,
        not quiet,
    )
    options = {"batch_size": batch_size, "recall": recall, "progress": not quiet}
    try:
        with _unless_empty(output):
            if source is None:
                made = SemanticIndex.open(output)
            else:
                made = _opened(output, source, chosen, opts.given(kind=kind, dtype=dtype))
                _add(made, source, chosen if clustered else None, workers, prune, options)
        if isinstance(source, Corpus):
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


def _source(corpus: list[Path], images: bool, reading: dict[str, Any]) -> tuple[Corpus | ShardFolder, str | None]:
    """What is to be indexed, and the model that a new index of its images needs."""
    from ssmoe_embed.distributed.shards import ShardFolder
    from ssmoe_embed.search.reading.corpus import only_images, read_documents

    shards = ShardFolder(corpus[0])
    if len(corpus) == 1 and shards.is_complete:
        return shards, None
    only = only_images(*corpus)
    source = read_documents(*corpus, images="only" if only else "too" if images else "no", **reading)
    return source, BUNDLED_CLIP if only or images else None


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
    """Refuse options that do nothing without a corpus."""
    if prune:
        raise ValueError("--prune removes the documents that CORPUS does not have; name it.")
    if not something:
        raise ValueError("There is nothing to do; name a CORPUS, or pass --delete ID, --rebuild or --verify.")
    if other_kind:
        raise ValueError("The --kind of an existing index is changed with --rebuild.")


def _delete(index: SemanticIndex, ids: list[str], conditions: list[str], recall: float) -> None:
    """Remove documents by id and by filters; nothing is removed if an id is not there, or nothing passes the filters."""
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


def _tell_skipped(source: Corpus, list_skipped: bool) -> None:
    """Tell of the lines and files that were left out."""
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
    output: Path, source: Corpus | ShardFolder, chosen: opts.ChosenModel, storage: dict[str, str]
) -> SemanticIndex:
    """The index with its model: the one that is there, or a new one."""
    from ssmoe_embed.distributed.shards import ShardFolder, check_shards
    from ssmoe_embed.search.fingerprint import model_fingerprint
    from ssmoe_embed.search.index import SemanticIndex

    if not Manifest.exists(output):
        if not isinstance(source, ShardFolder):
            next(iter(source))  # a corpus without a document is told before there is an index without one
        encoder = chosen.load()
        if isinstance(source, ShardFolder):
            check_shards(source, model_fingerprint(encoder))  # before there is an index of the wrong model
        reference = {"name": chosen.name or BUNDLED, "settings": chosen.settings}
        return SemanticIndex.create(output, encoder, reference=reference, **storage)
    manifest = Manifest.read(output)
    for setting, value in storage.items():
        if getattr(manifest, setting) != value:
            advice = "change it with --rebuild and no CORPUS" if setting == "kind" else "index into another folder"
            raise ValueError(
                f"The index in {output} has {setting}={getattr(manifest, setting)!r}, not {value!r}; {advice}."
            )
    return SemanticIndex.open(output, chosen.of_index(output).load())


def _add(
    index: SemanticIndex,
    source: Corpus | ShardFolder,
    on_cluster: opts.ChosenModel | None,
    workers: int | None,
    prune: bool,
    options: dict[str, Any],
) -> None:
    """Add the corpus, encoded here or on a cluster, and say what became of its documents."""
    from ssmoe_embed.distributed.shards import ShardFolder, add_shards

    made = "texts encoded"
    if isinstance(source, ShardFolder):
        made = "vectors taken over"
        counts = add_shards(index, source, recall=options["recall"], progress=options["progress"], prune=prune)
    elif on_cluster is None:
        counts = index.add(source, prune=prune, **options)
    else:
        from ssmoe_embed.distributed.engine import add_on_ray

        counts = add_on_ray(index, source, on_cluster.of_index(index.folder).reference(), workers=workers, **options)
        if prune:  # what the cluster encoded is not encoded again
            counts = replace(counts, removed=index.add(source, prune=True, **options).removed)
    if options["progress"]:
        shown = [f"{value} {name}" for name, value in vars(counts).items() if value and name != "encoded"]
        typer.echo(f"{', '.join(shown) or 'nothing to add'}; {counts.encoded} {made}", err=True)


def _verify(index: SemanticIndex) -> None:
    """Check every file; what is wrong is refused."""
    wrong = index.verify()
    if wrong:
        raise ValueError("\n".join([f"The index in {index.folder} is damaged:", *wrong]))
    typer.echo("Every file matches its checksum.", err=True)


def _report(index: SemanticIndex) -> None:
    """What the index is by now."""
    info = index.info()
    search = info["search"]
    measured = "exact"
    if "width" in search:
        measured = f"recall@10 {search['recall']:.3f} on {search['queries']} of its own vectors"
    line = f"{index.folder}: {len(index):,} documents, {info['live']:,} vectors of {info['dimension']} dimensions, "
    line += f"{search.get('kind', 'flat')} ({measured}), {info['bytes'] / 1e6:.1f} MB"
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)
    if search.get("recall", 1.0) < search.get("goal", 0.0):
        typer.echo(f"The recall is below {search['goal']}; another --kind with --rebuild may do better.", err=True)
