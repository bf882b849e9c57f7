"""A comparison of embeddings with the paper as a report and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssmoe_embed.common.tables import MISSING, Report, Table, csv_text, points, signed
from ssmoe_embed.evaluation.paper.comparison import Comparison, ComparisonRow, Setup
from ssmoe_embed.evaluation.paper.embeddings import OVERALL

LEGEND = f"measured (published, difference), in points of 100; {MISSING} was not measured"
_RUN = ("model", "revision", "paper_model", "corruption", "prompt", "settings", "method", "category", "task")
_VALUES = ("measured", "published", "difference", "covered", "total")


def report(comparison: Comparison) -> Report:
    """The comparison, a table for each setup."""
    title = f"{comparison.model} (revision {comparison.revision}) compared with the paper's {comparison.paper.name}"
    tables = [_table(comparison, setup) for setup in comparison.setups]
    return Report(title, (f"Cells: {LEGEND}.", *tables, *(f"Note: {note}" for note in comparison.notes)))


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as CSV, one row of a comparison a line; what is not there is empty."""
    rows: list[tuple[str | int | None, ...]] = []
    for comparison in comparisons:
        for row in comparison.rows:
            setup = (row.setup.corruption, row.setup.prompt, row.setup.settings)
            scores = (None if one is None else f"{one:.4f}" for one in (row.measured, row.published, row.difference))
            head = (comparison.model, comparison.revision, comparison.paper.name, *setup, str(row.method), row.category)
            rows.append((*head, row.task, *scores, int(row.covered), row.total))
    return csv_text((*_RUN, *_VALUES), rows)


def cell(row: ComparisonRow) -> str:
    """One line's scores in one table cell, such as `35.9 (37.4, −1.5)`."""
    if row.published is None:
        return points(row.measured)
    change = "" if row.difference is None else f", {signed(row.difference)}"
    return f"{points(row.measured)} ({row.published:.1f}{change})"


def _table(comparison: Comparison, setup: Setup) -> Table:
    """One setup: a row for each task and mean, a column for each method."""
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for name, found in _lines(comparison, setup):
        if found[0].task is None:
            bold |= {(len(rows), i) for i in range(len(found) + 1)}
        rows.append((name, *map(cell, found)))
    columns = ("task", *map(str, comparison.methods))
    note = f"{_coverage(comparison, setup)}."
    return Table(columns, tuple(rows), title=_heading(setup), bold=frozenset(bold), notes=(note,))


def _heading(setup: Setup) -> str:
    """What a table of one setup is called, such as `corrupt: replace@0.015, prompt none`."""
    texts = "clean" if setup.condition == setup.corruption else f"corrupt: {setup.corruption}"
    return ", ".join([texts, f"prompt {setup.prompt}", *([setup.settings] if setup.settings else [])])


def _coverage(comparison: Comparison, setup: Setup) -> str:
    """How much was measured, such as `Tasks measured of 19: ssmoe 12, smoe 19`."""
    means = [row for row in comparison.rows if row.setup == setup and row.category == OVERALL]
    counts = ", ".join(f"{row.method} {row.covered}" for row in means)
    return f"Tasks measured of {means[0].total}: {counts}"


def _lines(comparison: Comparison, setup: Setup) -> Iterator[tuple[str, list[ComparisonRow]]]:
    """The lines of one setup's table: a name and one row for each method."""
    found: dict[tuple[str, str | None], list[ComparisonRow]] = {}
    for row in comparison.rows:
        if row.setup == setup:
            found.setdefault((row.category, row.task), []).append(row)
    for (category, task), rows in found.items():
        yield task or (category if category == OVERALL else f"{category} mean"), rows
