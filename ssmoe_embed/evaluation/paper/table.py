"""A comparison with the paper as tables: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssmoe_embed.evaluation.paper.embeddings import OVERALL
from ssmoe_embed.evaluation.paper.rows import Comparison, Row, Setup

NOTHING = "–"
LEGEND = "measured (published, difference), in points of 100; – was not measured"
_CSV_FIELDS = (
    "model",
    "revision",
    "paper_model",
    "corruption",
    "prompt",
    "settings",
    "method",
    "category",
    "task",
    "measured",
    "published",
    "difference",
    "covered",
    "total",
)


def cell(row: Row) -> str:
    """One line's scores in one table cell, such as `35.9 (37.4, −1.5)`."""
    if row.measured is None:
        return NOTHING if row.published is None else f"{NOTHING} ({row.published:.1f})"
    if row.difference is None:
        return f"{row.measured:.1f}"
    return f"{row.measured:.1f} ({row.published:.1f}, {signed(row.difference)})"


def signed(difference: float, digits: int = 1) -> str:
    """A difference with its sign, a true minus; what rounds to zero has none."""
    text = f"{abs(difference):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if difference > 0 else '−'}{text}"


def heading(setup: Setup) -> str:
    """What a table of one setup is called, such as `corrupt: replace@0.015, prompt none`."""
    texts = "clean" if setup.condition == setup.corruption else f"corrupt: {setup.corruption}"
    return ", ".join([texts, f"prompt {setup.prompt}", *([setup.settings] if setup.settings else [])])


def coverage(comparison: Comparison, setup: Setup) -> str:
    """How much was measured, such as `12 of 19 tasks (smoe 19)`."""
    counts = {str(row.method): row.covered for row in comparison.rows if row.setup == setup and row.category == OVERALL}
    total = next(row.total for row in comparison.rows if row.setup == setup and row.category == OVERALL)
    return f"tasks measured of {total}: {', '.join(f'{method} {count}' for method, count in counts.items())}"


def rich_tables(comparison: Comparison) -> RenderableType:
    """The comparison for the terminal."""
    parts: list[RenderableType] = [Text(_title(comparison), style="bold"), Text(LEGEND, style="dim")]
    for setup in comparison.setups:
        table = Table(title=heading(setup), title_justify="left", caption=coverage(comparison, setup))
        table.add_column("task")
        for method in comparison.methods:
            table.add_column(str(method), justify="right")
        for name, rows in _lines(comparison, setup):
            mean = rows[0].task is None
            table.add_row(
                f"{name}" if mean else f"  {name}",
                *map(cell, rows),
                style="bold" if mean else None,
                end_section=mean,
            )
        parts.append(table)
    parts += [Text(f"Note: {note}", style="yellow") for note in comparison.notes]
    return Group(*parts)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as one Markdown document."""
    lines: list[str] = []
    for comparison in comparisons:
        lines += [f"# {_title(comparison)}", "", f"Cells: {LEGEND}.", ""]
        for setup in comparison.setups:
            methods = [str(method) for method in comparison.methods]
            lines += [f"## {heading(setup)}", "", markdown_row(["task", *methods]), _rule(len(methods))]
            for name, rows in _lines(comparison, setup):
                cells = [name, *map(cell, rows)]
                lines.append(markdown_row([f"**{text}**" for text in cells] if rows[0].task is None else cells))
            lines += ["", f"{coverage(comparison, setup).capitalize()}.", ""]
        lines += [f"- {note}" for note in comparison.notes] + ([""] if comparison.notes else [])
    return "\n".join(lines)


def csv_text(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as CSV, one row of a comparison a line; what is not there is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for comparison in comparisons:
        head = {"model": comparison.model, "revision": comparison.revision, "paper_model": comparison.paper.name}
        for row in comparison.rows:
            setup = {"corruption": row.setup.corruption, "prompt": row.setup.prompt, "settings": row.setup.settings}
            values = {
                "method": str(row.method),
                "category": row.category,
                "task": row.task or "",
                "measured": _number(row.measured),
                "published": _number(row.published),
                "difference": _number(row.difference),
                "covered": int(row.covered),
                "total": row.total,
            }
            writer.writerow(head | setup | values)
    return file.getvalue()


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in cells)} |"


def _rule(columns: int) -> str:
    return f"|---|{'---:|' * columns}"


def _lines(comparison: Comparison, setup: Setup) -> Iterator[tuple[str, list[Row]]]:
    """The lines of one setup's table: a name and one row a method."""
    found: dict[tuple[str, str | None], list[Row]] = {}
    for row in comparison.rows:
        if row.setup == setup:
            found.setdefault((row.category, row.task), []).append(row)
    for (category, task), rows in found.items():
        yield task or (category if category == OVERALL else f"{category} mean"), rows


def _title(comparison: Comparison) -> str:
    return f"{comparison.model} (revision {comparison.revision}) beside the paper's {comparison.paper.name}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
