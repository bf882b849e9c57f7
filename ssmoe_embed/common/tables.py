"""One table for everything that is shown in rows: as Markdown, as CSV and on the terminal; and reports made of tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

MISSING = "–"
"""What a cell without a value shows; in CSV it is empty."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: The heads.
        rows: The cells: texts, numbers that are shown as they are, or None.
        title: What it shows; may be empty.
        texts: How many columns, from the left, are aligned to the left; the others to the right, as numbers are.
        bold: Cells in bold, by row and column; after a row that is bold from end to end the terminal draws a line.
        notes: What a reader should know, below the table.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    title: str = ""
    texts: int = 1
    bold: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"A row of {len(self.columns)} columns has {len(wrong[0])} cells: {wrong[0]!r}.")

    def without_empty_columns(self) -> Table:
        """The table without those columns of text that are empty in all rows."""
        kept = [i for i in range(len(self.columns)) if i >= self.texts or any(row[i] for row in self.rows)]
        places = {old: new for new, old in enumerate(kept)}
        return replace(
            self,
            columns=tuple(self.columns[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in self.rows),
            texts=sum(i < self.texts for i in kept),
            bold=frozenset((row, places[i]) for row, i in self.bold if i in places),
        )

    def with_best(self) -> Table:
        """The table with the highest of the numbers of each column in bold, every one of them where several are equal."""
        best = set()
        for column in range(self.texts, len(self.columns)):
            values = {i: float(row[column]) for i, row in enumerate(self.rows) if row[column] not in (None, MISSING)}
            best |= {(i, column) for i, value in values.items() if value == max(values.values())}
        return replace(self, bold=self.bold | best)

    def markdown(self) -> str:
        """The table and its notes as Markdown, without the title."""
        rule = ["---" if i < self.texts else "---:" for i in range(len(self.columns))]
        lines = [_markdown_row(self.columns), _markdown_row(rule)]
        for place, row in enumerate(self.rows):
            cells = [f"**{_shown(cell)}**" if (place, i) in self.bold else _shown(cell) for i, cell in enumerate(row)]
            lines.append(_markdown_row(cells))
        return "\n\n".join(["\n".join(lines), *self.notes])

    def csv(self) -> str:
        """The heads and rows as CSV; a cell that is None is empty."""
        return csv_text(self.columns, self.rows)

    def rich(self) -> Group:
        """The table for a terminal, its title above and its notes below."""
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(show_lines=any("\n" in str(cell) for row in self.rows for cell in row))
        for i, column in enumerate(self.columns):
            left = i < self.texts
            made.add_column(Text(column), justify="left" if left else "right", overflow="fold")
        for place, row in enumerate(self.rows):
            strong = [(place, i) in self.bold for i in range(len(row))]
            cells = [Text(_shown(cell), "bold" if b else "") for cell, b in zip(row, strong, strict=True)]
            made.add_row(*cells, end_section=all(strong))
        return Group(*([Text(self.title, "italic")] if self.title else []), made, *(Text(n, "dim") for n in self.notes))


@dataclass(frozen=True)
class Report:
    """Paragraphs and tables under one title."""

    title: str
    parts: tuple[str | Table, ...]

    def markdown(self) -> str:
        """The report as a Markdown document; a table's title is a heading below the report's."""
        found = [f"# {self.title}"]
        for part in self.parts:
            if isinstance(part, Table):
                found += [f"## {part.title}", part.markdown()] if part.title else [part.markdown()]
            else:
                found.append(part)
        return "\n\n".join(found) + "\n"

    def rich(self) -> Group:
        """The report for a terminal."""
        from rich.console import Group
        from rich.text import Text

        parts = [part.rich() if isinstance(part, Table) else Text(part, style="dim") for part in self.parts]
        return Group(Text(self.title, style="bold"), *parts)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Heads and rows as CSV; a cell that is None is empty."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return output.getvalue()


def points(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals; nothing where there is none."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(difference: float, digits: int = 1) -> str:
    """A difference with its sign, a true minus; what rounds to zero has none."""
    text = f"{abs(difference):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if difference > 0 else '−'}{text}"


def _shown(cell: Any) -> str:
    return MISSING if cell is None else str(cell)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), '<br>') for cell in cells)} |"
