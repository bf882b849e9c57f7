"""Showing what was found."""

from __future__ import annotations

import json
import re
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
_LONGEST = 500
"""Characters shown of a document without snippet."""
_MARKS = re.compile(r"`+|\*\*")


def as_json(hit: Hit, explanation: Explanation | None) -> str:
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
            console.print(Padding(_table(explanation), (0, 0, 1, 3)))


def _head(rank: int, hit: Hit) -> Text:
    """Rank, title, what the score is made of, and the source."""
    document = hit.document
    parts = [] if hit.similarity is None else [f"{hit.similarity:.2f}"]
    parts += [] if hit.words is None else [f"words {hit.words:.0%}"]
    head = Text(f"{rank}. {document.title or document.id}", style="bold")
    return head + Text(f"  {', '.join(parts)}", style="cyan") + Text(f"  {document.source or ''}", style="dim")


def _marked(hit: Hit) -> Text:
    """The snippet with its best sentence marked, without Markdown's marks; or the beginning of the text."""
    snippet = hit.snippet
    if snippet is None:
        text = hit.document.text
        return Text(_MARKS.sub("", text[:_LONGEST]) + ("…" if len(text) > _LONGEST else ""))
    style = "reverse" if Console().no_color else "bold yellow"
    parts = (snippet.text[: snippet.start], snippet.sentence, snippet.text[snippet.end :])
    before, best, after = (_MARKS.sub("", part) for part in parts)
    return Text.assemble(before, (best, style), after)


def _table(explanation: Explanation) -> Table:
    """What each block adds to the similarity."""
    table = Table("block", box=None, pad_edge=False)
    for name in ("dimensions", "adds", "share", "own cosine"):
        table.add_column(name, justify="right")
    table.add_column("")
    largest = max(abs(part.score) for part in explanation.contributions) or 1.0
    for part in explanation.contributions:
        share = part.score / explanation.score if explanation.score else 0.0
        bar = "█" * round(_BAR * abs(part.score) / largest)
        numbers = (f"{part.size}", f"{part.score:+.4f}", f"{share:.0%}", f"{part.cosine:+.3f}")
        table.add_row(part.block, *numbers, Text(bar, style="cyan" if part.score >= 0 else "red"))
    table.add_row("similarity", "", f"{explanation.score:+.4f}", "100%", "", "")
    return table
