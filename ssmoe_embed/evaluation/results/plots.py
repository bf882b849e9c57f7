"""Pictures of results: which method is better on which task, and what corruption costs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ssmoe_embed.common.plots import house_style, label_axes, line_style, new_figure, png
from ssmoe_embed.evaluation.results.score_tables import ResultRow, ScoreTable, corruption_order, labels

_MOST_NUMBERS = 1200
"""Cells up to which a heat map shows the numbers."""
_MOST_LINES = 24


@house_style
def heatmap(table: ScoreTable) -> bytes:
    """A PNG with a row for each method and a column for each task.

    A cell shows the score; its colour, how far the score is above or below the column's mean, since tasks differ far more
    than methods do.
    """
    rows, tasks = list(table.cells), list(table.metrics)
    names, common = labels(rows)
    means = {task: fmean([found[task] for found in table.cells.values() if task in found] or [0.0]) for task in tasks}
    differences = [[table.cells[row].get(task, float("nan")) - means[task] for task in tasks] for row in rows]
    most = max([1.0, *(abs(one) for line in differences for one in line if one == one)])  # noqa: PLR0124 (not NaN)
    figure, [[axes]] = new_figure(3.2 + 0.45 * len(tasks) + _width(names), 2.2 + 0.3 * len(rows))
    image = axes.imshow(differences, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [names[row] for row in rows])
    if len(rows) * len(tasks) <= _MOST_NUMBERS:
        for y, row in enumerate(rows):
            for x, task in enumerate(tasks):
                if task in table.cells[row]:
                    dark = abs(differences[y][x]) > 0.6 * most
                    text = f"{table.cells[row][task]:.0f}"
                    axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    for x in range(1, len(tasks)):
        if table.kinds[tasks[x]] != table.kinds[tasks[x - 1]]:
            axes.axvline(x - 0.5, color="black", linewidth=0.8)
    figure.colorbar(image, ax=axes, label="points above the task's mean", fraction=0.03, pad=0.02)
    head = f"Main score, {table.corruption} texts (number: points of 100)"
    axes.set_title(f"{head}\n{common}" if common else head)
    return png(figure)


@house_style
def slopes(tables: Sequence[ScoreTable]) -> bytes | None:
    """A PNG of what corruption costs: a panel for each type of task and operation, a line for each method.

    Returns:
        None where no method was measured on all tasks of a type, both clean and corrupted.
    """
    clean = next((table for table in tables if table.corruption == "clean"), None)
    corrupt = [table for table in tables if table.corruption != "clean"]
    if clean is None or not corrupt:
        return None
    rows = [row for row in clean.cells if any(row in table.cells for table in corrupt)][:_MOST_LINES]
    operations = list(dict.fromkeys(table.corruption.partition("@")[0] for table in corrupt))
    kinds = [*clean.types, None] if len(clean.types) > 1 else list(clean.types)
    if not rows:
        return None
    names, common = labels(rows)
    width = 2.6 * len(kinds) + _width(names)
    figure, grid = new_figure(max(6.0, width), 2.9 * len(operations) + 0.4, len(operations), len(kinds))
    for line, operation in zip(grid, operations, strict=True):
        steps = [clean, *(table for table in corrupt if table.corruption.partition("@")[0] == operation)]
        steps.sort(key=lambda table: corruption_order(table.corruption))
        for axes, kind in zip(line, kinds, strict=True):
            _panel(axes, steps, names, kind)
    handles, shown = grid[0][0].get_legend_handles_labels()
    grid[0][0].set_ylabel("mean score, points of 100")
    if common:
        figure.suptitle(common)
    figure.legend(handles, shown, loc="outside right upper")
    return png(figure)


def _panel(axes: Any, steps: Sequence[ScoreTable], names: dict[ResultRow, str], kind: str | None) -> None:
    """The lines of one type of task under rising rates of one operation."""
    for i, row in enumerate(names):
        means = [_mean(table, row, kind) if row in table.cells else None for table in steps]
        known = [(x, mean) for x, mean in enumerate(means) if mean is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], marker="o", label=names[row], **line_style(i))
    ticks = [table.corruption.partition("@")[2].replace(",", "\n") or table.corruption for table in steps]
    label_axes(axes, kind or "mean of types", f"{steps[-1].corruption.partition('@')[0]}, nominal rate")
    axes.set_xticks(range(len(steps)), ticks)
    axes.set_xlim(-0.3, len(steps) - 0.7)


def _mean(table: ScoreTable, row: ResultRow, kind: str | None) -> float | None:
    return table.mean_of_types(row) if kind is None else table.mean(row, kind)


def _width(names: dict[ResultRow, str]) -> float:
    """Inches that the rows' names take."""
    return 0.065 * max(map(len, names.values()))
