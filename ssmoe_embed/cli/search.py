"""`ssmoe search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ssmoe_embed.cli import options as opts
from ssmoe_embed.cli.images import Images, Like, check_like, means_images, open_images
from ssmoe_embed.cli.index import OwnModel, open_with_model
from ssmoe_embed.common.tables import Table

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ssmoe_embed.search import Explanation, Hit, SemanticIndex
    from ssmoe_embed.search.reading.corpus import Corpus


_WIDTH = 100
_BAR = 12
_LONGEST = 500
"""Characters shown of a document without snippet."""


def _json(hit: Hit, explanation: Explanation | None) -> str:
    """A hit as one line of JSON."""
    document = hit.document
    shown: dict[str, Any] = {name: getattr(hit, name) for name in ("score", "similarity", "words", "weak")}
    shown |= {name: getattr(document, name) for name in ("id", "title", "text", "source")}
    shown["metadata"] = dict(document.metadata)
    if hit.snippet is not None:
        shown["best_sentence"] = hit.snippet.sentence
    if explanation is not None:
        shown["explanation"] = [vars(part) for part in explanation.contributions]
    return json.dumps(shown, ensure_ascii=False)


def show(hits: Sequence[Hit], explanations: Sequence[Explanation | None]) -> None:
    """Print hits for a person, with their best sentences marked."""
    console = Console(width=min(_WIDTH, Console().width), highlight=False)
    if not hits:
        console.print("Nothing was found.")
    elif hits[0].weak:
        console.print("No document fits well; these are the nearest.\n")
    for rank, (hit, explanation) in enumerate(zip(hits, explanations, strict=True), start=1):
        console.print(_head(rank, hit))
        console.print(Padding(_marked(hit), (0, 0, 0 if explanation else 1, 3)))
        if explanation is not None:
            console.print(Padding(_table(explanation).rich(), (0, 0, 1, 3)))


def _head(rank: int, hit: Hit) -> Text:
    """Rank, title, what the score is made of, and the source."""
    document = hit.document
    parts = [] if hit.similarity is None else [f"{hit.similarity:.2f}"]
    parts += [] if hit.words is None else [f"words {hit.words:.0%}"]
    head = Text(f"{rank}. {document.title or document.id}", style="bold")
    return head + Text(f"  {', '.join(parts)}", style="cyan") + Text(f"  {document.source or ''}", style="dim")


def _marked(hit: Hit) -> Text:
    """The snippet with its best sentence marked; or the beginning of the text."""
    style = "reverse" if Console().no_color else "bold yellow"
    shown = Text.assemble(*((text, style if best else "") for text, best in hit.shown()))
    if hit.snippet is None and len(shown) > _LONGEST:
        return shown[:_LONGEST] + Text("…")
    return shown


def _table(explanation: Explanation) -> Table:
    """What each block adds to the similarity."""
    largest = max(abs(part.score) for part in explanation.contributions) or 1.0
    rows = []
    for part in explanation.contributions:
        share = part.score / explanation.score if explanation.score else 0.0
        bar = "█" * round(_BAR * abs(part.score) / largest)
        rows.append((part.block, bar, part.size, f"{part.score:+.4f}", f"{share:.0%}", f"{part.cosine:+.3f}"))
    total = ("similarity", "", "", f"{explanation.score:+.4f}", "100%", "")
    return Table(("block", "", "dimensions", "adds", "share", "own cosine"), (*rows, total), texts=2)


_TOP = 5


def search(
    query: Annotated[str | None, typer.Argument(help="What you are looking for, in your own words.")] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            help="File or folder to search, of the kinds that `ssmoe index` takes, or emoji; may be repeated."
        ),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Index to search, a folder that `ssmoe index` made.")] = None,
    images: Images = None,
    like: Like = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many documents to show.")] = _TOP,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="Only documents that match: lang=en, 'path=notes/*', 'year>=1999', year=1999..2005; may be repeated.",
        ),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Rank by meaning and by words; this is the default.")
    ] = False,
    vectors_only: Annotated[bool, typer.Option("--vectors-only", help="Rank by meaning alone.")] = False,
    words_only: Annotated[bool, typer.Option("--words-only", help="Rank by words alone (BM25).")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each block of the vectors contributes.")
    ] = False,
    interactive: Annotated[bool, typer.Option("--interactive", help="Read queries until an empty line.")] = False,
    field: opts.TextField = "text",
    encoding: opts.TextEncoding = "utf-8",
    on_error: opts.OnBroken = "stop",
    model: OwnModel = None,
    method: opts.Method = None,
    prompt: opts.Prompt = None,
    alpha: opts.Alpha = None,
    device: opts.Device = None,
    batch_size: opts.BatchSize = 32,
    quiet: opts.Quiet = False,
) -> None:
    """Find the documents that fit a query best, by meaning and by words.

    Without --corpus or --index it searches the how-to answers that come with the package. A corpus is encoded once; its
    vectors stay in the user's cache.
    """
    from ssmoe_embed.search import SemanticIndex, parse_filters, read_documents

    if bool(corpus) + bool(images) + (index is not None) > 1:
        raise ValueError(
            "--corpus, --images and --index exclude each other; add a corpus or images to an index with `ssmoe index`."
        )
    mode = _mode(hybrid, vectors_only, words_only)
    check_like(like, query, interactive, mode, explain)
    filters = parse_filters(conditions or [])
    settings = opts.given(method=method, prompt=prompt, alpha=alpha)
    if index is None and means_images(corpus, images, like):
        opened = open_images(images, like, model, settings, device, batch_size, quiet)
    elif index is None:
        source = read_documents(*corpus, field=field, encoding=encoding, on_error=on_error) if corpus else None
        quick = source is None and _is_bundled(model or opts.DEFAULT_MODEL, settings, device, explain)
        opened = _read(source, None if quick else model or opts.DEFAULT_MODEL, settings, device, batch_size, quiet)
    elif mode == "words" and not explain:
        opened = SemanticIndex.open(index)  # words need no model
    elif _is_bundled(*_made_with(index, model, settings), device, explain):
        opened = SemanticIndex.open(index, _bundled())
    else:
        opened = open_with_model(index, model, settings, device, quiet)
    if not len(opened):
        raise ValueError(
            f"The index in {index} holds no document yet; fill it with `ssmoe index CORPUS --output {index}`."
        )
    if like is not None:
        _print(opened.search_like(like, top, filters=filters), as_json=as_json)
        return
    options = {"top": top, "filters": filters, "mode": mode, "snippets": opened.model is not None}
    for text in _queries(query) if interactive else [query or ""]:
        _search(opened, text, options, as_json=as_json, explain=explain)


def _mode(hybrid: bool, vectors_only: bool, words_only: bool) -> str:
    """What to compare.

    Raises:
        ValueError: Several were asked for.
    """
    if hybrid + vectors_only + words_only > 1:
        raise ValueError("--hybrid, --vectors-only and --words-only exclude each other; pass one of them.")
    return "vectors" if vectors_only else "words" if words_only else "hybrid"


def _made_with(index: Path, model: str | None, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the settings of the model that an index is searched with."""
    from ssmoe_embed.search.manifest import Manifest

    reference = Manifest.read(index).reference
    return model or reference.get("name", ""), settings if model else reference.get("settings", {}) | settings


def _is_bundled(name: str, settings: dict[str, Any], device: str | None, explain: bool) -> bool:
    """Whether queries can be encoded without PyTorch: by the bundled model as it is, and nothing is asked of its blocks."""
    return name == opts.DEFAULT_MODEL and not (Path(name).is_dir() or settings or device or explain)


def _bundled() -> SentenceTransformer:
    """The bundled model, at hand at once; it has of a `SentenceTransformer` what searching needs."""
    from ssmoe_embed.embedding.bundled import BundledEncoder

    return cast("SentenceTransformer", BundledEncoder())


def _read(
    source: Corpus | None,
    model: str | None,
    settings: dict[str, Any],
    device: str | None,
    batch_size: int,
    quiet: bool,
) -> SemanticIndex:
    """An index in the cache of what is to be searched: files, or the bundled corpus; no model means the bundled one."""
    from ssmoe_embed.search.corpora import bundled_index, corpus_index

    if model is None:
        return bundled_index(_bundled(), progress=not quiet)
    from ssmoe_embed.hub.models import load

    encoder = load(model, device=device, progress=not quiet, **settings)
    if source is None:
        return bundled_index(encoder, batch_size=batch_size, progress=not quiet)
    made = corpus_index(encoder, source, batch_size=batch_size, progress=not quiet)
    if source.skipped:
        typer.echo(f"{source.skipped} broken lines left out", err=True)
    if source.skipped_files:
        typer.echo(source.skipped_summary(), err=True)
    return made


def _search(index: SemanticIndex, query: str, options: dict[str, Any], *, as_json: bool, explain: bool) -> None:
    """Search an index and print what was found."""
    hits = index.search(query, **options)
    explanations = [index.explain(query, hit.document.id) for hit in hits] if explain else None
    _print(hits, explanations, as_json=as_json)


def _print(hits: Sequence[Hit], made: Sequence[Explanation] | None = None, *, as_json: bool) -> None:
    """Print what was found, for a person or a program."""
    explanations: Sequence[Explanation | None] = [None] * len(hits) if made is None else made
    if as_json:
        for hit, explanation in zip(hits, explanations, strict=True):
            typer.echo(_json(hit, explanation))
    else:
        show(hits, explanations)


def _queries(first: str | None) -> Iterator[str]:
    """The first query, if one was given, and then what is typed until an empty line or the end."""
    if first is not None:
        yield first
    while True:
        if sys.stdin.isatty():
            typer.echo("Search: ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
