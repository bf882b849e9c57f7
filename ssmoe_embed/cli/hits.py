"""Showing what was found in an index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ssmoe_embed.search import Explanation, Hit

_WIDTH = 100
_BAR = 24


def as_json(hit: Hit, explanation: Explanation | None) -> str:
    """A hit as one line of JSON."""
    document = hit.document
    shown: dict[str, Any] = {"score": hit.score, "similarity": hit.similarity}
    shown |= {name: getattr(document, name) for name in ("id", "title", "text", "source")}
    shown["metadata"] = dict(document.metadata)
    if hit.snippet is not None:
        shown["best_sentence"] = hit.snippet.sentence
    if explanation is not None:
        shown["explanation"] = [vars(part) for part in explanation.contributions]
    return json.dumps(shown, ensure_ascii=False)


def show(hits: Sequence[Hit], explanations: Sequence[Explanation | None]) -> None:
    """Print hits for a person, with their best sentences marked."""
    console = Console(width=min(_WIDTH, Console().width))
    if not hits:
        console.print("Nothing was found.")
    for rank, (hit, explanation) in enumerate(zip(hits, explanations, strict=True), start=1):
        console.print(_head(rank, hit))
        console.print(Padding(_marked(hit), (0, 0, 0 if explanation else 1, 3)))
        if explanation is not None:
            console.print(Padding(_table(explanation), (0, 0, 1, 3)))


def _head(rank: int, hit: Hit) -> Text:
    document = hit.document
    score = f"  {hit.similarity:.2f}" + (f"  (fused {hit.score:.4f})" if hit.score != hit.similarity else "")
    head = Text(f"{rank}. {document.title or document.id}", style="bold") + Text(score, style="cyan")
    return head + Text(f"  {document.source or ''}", style="dim")


def _marked(hit: Hit) -> Text:
    """The snippet with its best sentence marked, or the whole text."""
    snippet = hit.snippet
    if snippet is None:
        return Text(hit.document.text)
    text = Text(snippet.text)
    text.stylize("reverse" if Console().no_color else "bold yellow", snippet.start, snippet.end)
    return text


def _table(explanation: Explanation) -> Table:
    """What each block adds to the score."""
    table = Table("block", box=None, pad_edge=False)
    for name in ("numbers", "adds", "share", "own cosine"):
        table.add_column(name, justify="right")
    table.add_column("")
    largest = max(abs(part.score) for part in explanation.contributions) or 1.0
    for part in explanation.contributions:
        share = part.score / explanation.score if explanation.score else 0.0
        bar = "█" * round(_BAR * abs(part.score) / largest)
        numbers = (f"{part.size}", f"{part.score:+.4f}", f"{share:.0%}", f"{part.cosine:+.3f}")
        table.add_row(part.block, *numbers, Text(bar, style="cyan" if part.score >= 0 else "red"))
    table.add_row("score", "", f"{explanation.score:+.4f}", "100%", "", "")
    return table
