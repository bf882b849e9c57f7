"""`ssmoe search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer import Argument, Option

from ssmoe_embed.cli import options as opts
from ssmoe_embed.common.tables import Table
from ssmoe_embed.data import BUNDLED, BUNDLED_CLIP

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ssmoe_embed.search import Explanation, Hit, SemanticIndex

_WIDTH = 100
_BAR = 12
_LONGEST = 500
"""Characters shown of a document without snippet."""
_EMOJI = Path("emoji")
"""The name of the bundled corpus of images, unless there is a file or folder of that name."""


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


def _show(hits: Sequence[Hit], explanations: Sequence[Explanation] = (), *, as_json: bool) -> None:
    """Print what was found: for a program, or for a person, with the best sentences marked."""
    if as_json:
        for hit, explanation in zip_longest(hits, explanations):
            typer.echo(_json(hit, explanation))
        return
    console = Console(width=min(_WIDTH, Console().width), highlight=False)
    if not hits:
        console.print("Nothing was found.")
    elif hits[0].weak:
        console.print("No document fits well; these are the nearest.\n")
    for rank, (hit, explanation) in enumerate(zip_longest(hits, explanations), start=1):
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


def search(
    query: Annotated[str | None, Argument(help="What you are looking for, in your own words.")] = None,
    corpus: Annotated[
        list[Path] | None,
        Option(help="File or folder to search, of the kinds that `ssmoe index` takes, or emoji; may be repeated."),
    ] = None,
    index: Annotated[Path | None, Option(help="Index to search, a folder that `ssmoe index` made.")] = None,
    images: Annotated[list[Path] | None, Option(help="Image, or folder of images, to search; may be repeated.")] = None,
    like: Annotated[
        Path | None, Option(metavar="FILE", help="Find what looks like this image; takes the place of QUERY.")
    ] = None,
    top: Annotated[int, Option("--top", "-k", min=1, help="How many documents to show.")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object per line.")] = False,
    conditions: Annotated[
        list[str] | None,
        Option(
            "--filter",
            metavar="KEY=VALUE",
            help="Only documents that match: lang=en, 'path=notes/*', 'year>=1999', year=1999..2005; may be repeated.",
        ),
    ] = None,
    hybrid: Annotated[bool, Option("--hybrid", help="Rank by meaning and by words; this is the default.")] = False,
    vectors_only: Annotated[bool, Option("--vectors-only", help="Rank by meaning alone.")] = False,
    words_only: Annotated[bool, Option("--words-only", help="Rank by words alone (BM25).")] = False,
    explain: Annotated[bool, Option("--explain", help="Show what each block of the vectors contributes.")] = False,
    interactive: Annotated[bool, Option("--interactive", help="Read queries until an empty line.")] = False,
    field: opts.TextField = "text",
    encoding: opts.TextEncoding = "utf-8",
    on_error: opts.OnBroken = "stop",
    model: opts.OwnModel = None,
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
    from ssmoe_embed.search import SemanticIndex, parse_filters

    if bool(corpus) + bool(images) + (index is not None) > 1:
        raise ValueError(
            "--corpus, --images and --index exclude each other; add a corpus or images to an index with `ssmoe index`."
        )
    if hybrid + vectors_only + words_only > 1:
        raise ValueError("--hybrid, --vectors-only and --words-only exclude each other; pass one of them.")
    mode = "vectors" if vectors_only else "words" if words_only else "hybrid"
    _check_like(like, query is not None or interactive, mode == "words" or explain)
    filters = parse_filters(conditions or [])
    chosen = opts.ChosenModel(model, opts.given(method=method, prompt=prompt, alpha=alpha), device, not quiet)
    if index is None:
        reading = {"field": field, "encoding": encoding, "on_error": on_error}
        opened = _in_cache(corpus, images, like, chosen, reading, batch_size, explain)
    elif mode == "words" and not explain:
        opened = SemanticIndex.open(index)  # words need no model
    else:
        opened = SemanticIndex.open(index, _load(chosen.of_index(index), explain))
    if not len(opened):
        raise ValueError(
            f"The index in {index} holds no document yet; fill it with `ssmoe index CORPUS --output {index}`."
        )
    if like is not None:
        _show(opened.search_like(like, top, filters=filters), as_json=as_json)
        return
    for text in _queries(query, interactive):
        hits = opened.search(text, top=top, filters=filters, mode=mode, snippets=opened.model is not None)
        _show(hits, [opened.explain(text, hit.document.id) for hit in hits] if explain else (), as_json=as_json)


def _check_like(like: Path | None, asked: bool, of_words: bool) -> None:
    """Make sure that there is one thing to look for, and that it can be looked for so."""
    if like is None and not asked:
        raise ValueError("There is no query; say what you are looking for, or pass --interactive or --like.")
    if like is not None and asked:
        raise ValueError("--like takes the place of a query; pass one of the two.")
    if like is not None and of_words:
        raise ValueError("An image has no words; leave out --words-only and --explain beside --like.")


def _in_cache(
    corpus: list[Path] | None,
    images: list[Path] | None,
    like: Path | None,
    chosen: opts.ChosenModel,
    reading: dict[str, Any],
    batch_size: int,
    explain: bool,
) -> SemanticIndex:
    """An index in the cache of files or images, or else of what comes with the package: how-to answers, or emoji.

    Images, and emoji that look like one, are searched by the bundled CLIP-MoE; for words emoji are found by their names and
    tags, which says more than their pictures. Only the how-to answers may be searched by the quick encoder.
    """
    from ssmoe_embed.search import read_documents
    from ssmoe_embed.search.corpora import bundled_index, corpus_index, emoji_index

    emoji = corpus == [_EMOJI] and not _EMOJI.exists()
    bundled = emoji_index if emoji or like is not None else bundled_index
    source = None
    if images:
        source = read_documents(*images, images="only")
    elif corpus and not emoji:
        source = read_documents(*corpus, **reading)
    by_pixels = bool(images) or (like is not None and source is None)
    chosen = replace(chosen, name=chosen.name or (BUNDLED_CLIP if by_pixels else BUNDLED))
    answers = source is None and bundled is bundled_index
    encoder = _load(chosen, explain) if answers else chosen.load()
    if source is None:
        return bundled(encoder, batch_size=batch_size, progress=chosen.progress)
    made = corpus_index(encoder, source, batch_size=batch_size, progress=chosen.progress)
    if source.skipped:
        typer.echo(f"{source.skipped} broken lines left out", err=True)
    if source.skipped_files:
        typer.echo(source.skipped_summary(), err=True)
    return made


def _load(chosen: opts.ChosenModel, explain: bool) -> SentenceTransformer:
    """The model; the bundled one as it is, where nothing is asked of its blocks, without PyTorch and at hand at once."""
    if chosen.name != BUNDLED or Path(BUNDLED).is_dir() or chosen.settings or chosen.device or explain:
        return chosen.load()
    from ssmoe_embed.embedding.bundled import BundledEncoder

    return cast("SentenceTransformer", BundledEncoder())  # which has of it what searching needs


def _queries(first: str | None, interactive: bool) -> Iterator[str]:
    """The query, if one was given, and then what is typed until an empty line or the end."""
    if first is not None:
        yield first
    while interactive:
        if sys.stdin.isatty():
            typer.echo("Search: ", nl=False, err=True)
        typed = sys.stdin.readline().strip()
        if not typed:
            return
        yield typed
