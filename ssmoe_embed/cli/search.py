"""`ssmoe search`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ssmoe_embed.cli.hits import as_json as hit_as_json
from ssmoe_embed.cli.hits import show
from ssmoe_embed.cli.index import OwnModel, open_with_model
from ssmoe_embed.cli.options import DEFAULT_MODEL, Alpha, BatchSize, Device, Method, Prompt, Quiet, given

if TYPE_CHECKING:
    from ssmoe_embed.search.exact import Hit
    from ssmoe_embed.search.index import SemanticIndex

_TOP = 5


def search(
    query: Annotated[str | None, typer.Argument(help="What you are looking for, in your own words.")] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(help="File to search: .jsonl with a text (and title) a line, or plain text, one document a line."),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Folder to search that `ssmoe index` made.")] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many documents to show.")] = _TOP,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    conditions: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="KEY=VALUE", help="Only such documents; may be repeated. Needs --index."),
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Search by words (BM25) too. Needs --index.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each block of the vectors adds. Needs --index.")
    ] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Ask for queries until an empty line. Needs --index.")
    ] = False,
    model: OwnModel = None,
    method: Method = None,
    prompt: Prompt = None,
    alpha: Alpha = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    quiet: Quiet = False,
) -> None:
    """Find the documents nearest in meaning to a query.

    Without --corpus or --index it searches the how-to answers that come with the package. A corpus is encoded once; its
    vectors stay in the user's cache.
    """
    settings = given(method=method, prompt=prompt, alpha=alpha)
    if index is None:
        for name, wanted in {
            "filter": conditions,
            "hybrid": hybrid,
            "explain": explain,
            "interactive": interactive,
        }.items():
            if wanted:
                raise ValueError(
                    f"--{name} needs an index; make one with `ssmoe index CORPUS` and name it with --index."
                )
        from ssmoe_embed.hub.loading import load
        from ssmoe_embed.search.corpus import read_corpus
        from ssmoe_embed.search.exact import CorpusSearch

        documents = read_corpus(corpus)
        encoder = load(model or DEFAULT_MODEL, device=device, progress=not quiet, **settings)
        found = CorpusSearch(encoder, documents, batch_size=batch_size, progress=not quiet)
        _print(found.search(_given_query(query), top), as_json)
        return
    if corpus is not None:
        raise ValueError("--corpus and --index exclude each other; add the corpus to the index with `ssmoe index`.")
    from ssmoe_embed.search.filters import parse_filters

    filters = parse_filters(conditions or [])
    opened = open_with_model(index, model, settings, device, quiet)
    if not len(opened):
        raise ValueError(
            f"The index in {index} holds no document yet; fill it with `ssmoe index CORPUS --output {index}`."
        )
    options: dict[str, Any] = {"top": top, "filters": filters, "hybrid": hybrid}
    for text in _queries(query) if interactive else [_given_query(query)]:
        _search_index(opened, text, options, as_json=as_json, explain=explain)


def _given_query(query: str | None) -> str:
    if query is None:
        raise ValueError("There is no query; say what you are looking for, or pass --interactive with --index.")
    return query


def _print(hits: list[Hit], as_json: bool) -> None:
    """Print hits of a corpus."""
    if as_json:
        for hit in hits:
            typer.echo(json.dumps({"score": hit.score} | vars(hit.document), ensure_ascii=False))
    else:
        _show(hits)


def _search_index(index: SemanticIndex, query: str, options: dict[str, Any], *, as_json: bool, explain: bool) -> None:
    """Search an index and print what was found."""
    hits = index.search(query, snippets=True, **options)
    explanations = [index.explain(query, hit.document.id) if explain else None for hit in hits]
    if as_json:
        for hit, explanation in zip(hits, explanations, strict=True):
            typer.echo(hit_as_json(hit, explanation))
    else:
        show(hits, explanations)


def _queries(first: str | None) -> Any:
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


def _show(hits: list[Hit]) -> None:
    """Print hits for a person."""
    from rich.markdown import Markdown

    console = Console(width=min(100, Console().width))
    for rank, hit in enumerate(hits, start=1):
        document = hit.document
        head = Text(f"{rank}. {document.title or document.id}", style="bold")
        console.print(head + Text(f"  {hit.score:.2f}", style="cyan") + Text(f"  {document.source}", style="dim"))
        console.print(Padding(Markdown(document.text), (0, 0, 1, 3)))
