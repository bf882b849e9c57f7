"""`ssmoe search`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.text import Text

from ssmoe_embed.cli.options import DEFAULT_MODEL, Alpha, BatchSize, Device, Method, Model, Prompt, Quiet, given
from ssmoe_embed.hub.loading import load
from ssmoe_embed.retrieval.corpus import read_corpus
from ssmoe_embed.retrieval.search import CorpusSearch, Hit


def search(
    query: Annotated[str, typer.Argument(help="What you are looking for, in your own words.")],
    corpus: Annotated[
        Path | None,
        typer.Option(help="File to search: .jsonl with a text (and title) a line, or plain text, one document a line."),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many documents to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    model: Model = DEFAULT_MODEL,
    method: Method = None,
    prompt: Prompt = None,
    alpha: Alpha = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    quiet: Quiet = False,
) -> None:
    """Find the documents nearest in meaning to a query.

    Without --corpus it searches the how-to answers that come with the package. The corpus is encoded once; its vectors
    stay in the user's cache.
    """
    documents = read_corpus(corpus)
    settings = given(method=method, prompt=prompt, alpha=alpha)
    encoder = load(model, device=device, progress=not quiet, **settings)
    index = CorpusSearch(encoder, documents, batch_size=batch_size, progress=not quiet)
    hits = index.search(query, top)
    if as_json:
        for hit in hits:
            typer.echo(json.dumps({"score": hit.score} | vars(hit.document), ensure_ascii=False))
    else:
        _show(hits)


def _show(hits: list[Hit]) -> None:
    """Print hits for a person."""
    console = Console(width=min(100, Console().width))
    for rank, hit in enumerate(hits, start=1):
        document = hit.document
        head = Text(f"{rank}. {document.title or document.id}", style="bold")
        console.print(head + Text(f"  {hit.score:.2f}", style="cyan") + Text(f"  {document.source}", style="dim"))
        console.print(Padding(Markdown(document.text), (0, 0, 1, 3)))
