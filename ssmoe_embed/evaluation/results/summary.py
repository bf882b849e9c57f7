"""The results of a folder as Markdown, CSV and plots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.plots import draw_interval, house_style, label_axes, line_style, new_figure, png
from ssmoe_embed.common.tables import MISSING, Report, Table, csv_text, points
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.evaluation.results.folder import Rate, ResultFolder, TaskScore
from ssmoe_embed.evaluation.significance.bootstrap import mean_interval

_TYPES = ("Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS", "Summarization")
"""The order of the kinds of task; others follow by name."""
_METHODS = [str(method) for method in Method]


@dataclass(frozen=True)
class ResultRow:
    """What a row of a table is about: see `TaskScore`; a model of several revisions is named with its own."""

    model: str
    method: str
    prompt: str
    settings: str


@dataclass(frozen=True)
class ScoreTable:
    """The scores under one corruption, in points of 100.

    Attributes:
        corruption: Its name.
        metrics: The tasks in the order of the columns, each with its metric.
        kinds: Each task's type.
        cells: The score by row and task; what was not measured is missing.
    """

    corruption: str
    metrics: dict[str, str]
    kinds: dict[str, str]
    cells: dict[ResultRow, dict[str, float]]

    @property
    def types(self) -> list[str]:
        """The kinds of task, in order."""
        return list(dict.fromkeys(self.kinds[task] for task in self.metrics))

    def mean(self, row: ResultRow, kind: str | None = None) -> float | None:
        """Mean over the tasks of a type, or over all; None unless all of them were measured."""
        return _complete_mean([self.cells[row].get(task) for task in self.metrics if kind in (None, self.kinds[task])])

    def mean_of_types(self, row: ResultRow) -> float | None:
        """Mean of the types' means; None unless all tasks were measured."""
        return _complete_mean([self.mean(row, kind) for kind in self.types])


def _complete_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def score_tables(scores: Sequence[TaskScore]) -> list[ScoreTable]:
    """One table a corruption, clean texts first, all with the same columns.

    Baselines stand after models, methods in their usual order; models of several revisions are named with them.
    """
    revisions = {(score.model, score.revision) for score in scores}
    versions = Counter(model for model, _ in revisions)
    ordered = sorted(scores, key=lambda score: (_rank(score.task_type, _TYPES), score.task_type, score.task))
    metrics = {score.task: score.metric for score in ordered}
    kinds = {score.task: score.task_type for score in ordered}
    found = {
        corruption: ScoreTable(corruption, metrics, kinds, {})
        for corruption in sorted({score.corruption for score in scores}, key=_corruption_order)
    }
    for score in sorted(scores, key=_row_order):
        model = f"{score.model}@{score.revision[:7]}" if versions[score.model] > 1 else score.model
        row = ResultRow(model, score.method, score.prompt, score.settings_text)
        found[score.corruption].cells.setdefault(row, {})[score.task] = 100 * score.score
    return list(found.values())


def _row_order(score: TaskScore) -> tuple[object, ...]:
    order = (score.model, score.revision, score.prompt, _rank(score.method, _METHODS), score.settings_text)
    return (not score.method, *order)


def labels(rows: Sequence[ResultRow]) -> tuple[dict[ResultRow, str], str]:
    """Short names of rows, and what all of them but the baselines have in common.

    Returns:
        For each row what tells it apart from the others, and the common prompt and settings.
    """
    models = [row for row in rows if row.method]
    prompts, settings = {row.prompt for row in models}, {row.settings for row in models}
    names = {}
    for row in rows:
        parts = [row.model, row.method, *([row.prompt] if len(prompts) > 1 else [])]
        parts += [row.settings] if len(settings) > 1 or not row.method else []
        names[row] = " · ".join(part for part in parts if part)
    common = [f"prompt {prompt}" for prompt in prompts if len(prompts) == 1 and prompt]
    return names, ", ".join([*common, *(text for text in settings if len(settings) == 1 and text)])


def _corruption_order(name: str) -> tuple[object, ...]:
    """A key that sorts clean texts first, then each operation by its rate."""
    operation, _, rest = name.partition("@")
    rate = rest.partition(",")[0]
    return (name != "clean", operation != "replace", operation, float(rate) if rate else 0.0, name)


def _rank(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


_MOST_NUMBERS = 1200
"""Cells up to which a heat map shows the numbers."""
_MOST_LINES = 24
_INCHES = 0.065
"""Width of a letter of a row's name."""


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
    longest = max(map(len, names.values()))
    figure, [[axes]] = new_figure(3.2 + 0.45 * len(tasks) + _INCHES * longest, 2.2 + 0.3 * len(rows))
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

    Rates stand where they are on the axis. Bars are 95 % intervals of the mean change from clean texts when the tasks are
    drawn again, where there are three of them.

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
    width = 2.6 * len(kinds) + _INCHES * max(map(len, names.values()))
    figure, grid = new_figure(max(6.0, width), 2.9 * len(operations) + 0.4, len(operations), len(kinds))
    for line, operation in zip(grid, operations, strict=True):
        steps = [clean, *(table for table in corrupt if table.corruption.partition("@")[0] == operation)]
        steps.sort(key=lambda table: _corruption_order(table.corruption))
        for axes, kind in zip(line, kinds, strict=True):
            _panel(axes, steps, names, kind)
    handles, shown = grid[0][0].get_legend_handles_labels()
    grid[0][0].set_ylabel("mean score, points of 100")
    if common:
        figure.suptitle(common)
    figure.legend(handles, shown, loc="outside right upper")
    return png(figure)


def _panel(axes: Any, steps: Sequence[ScoreTable], names: dict[ResultRow, str], kind: str | None) -> None:
    """The lines of one type of task under rising rates of one operation; of equal rates by the number of the step."""
    rates = [float(table.corruption.partition("@")[2].partition(",")[0] or 0) for table in steps]
    places = rates if len(set(rates)) == len(rates) else [float(number) for number in range(len(rates))]
    for i, row in enumerate(names):
        known = []
        for x, table in zip(places, steps, strict=True):
            if row in table.cells:
                mean = table.mean_of_types(row) if kind is None else table.mean(row, kind)
                known += [] if mean is None else [(x, mean, table)]
        axes.plot([x for x, _, _ in known], [y for _, y, _ in known], marker="o", label=names[row], **line_style(i))
        first = known[0][1] if known else 0.0
        for x, mean, table in known[1:]:
            ends = mean_interval(_changes(known[0][2], table, row, kind))
            draw_interval(axes, x, mean, ends and (first + ends[0], first + ends[1]))
    ticks = [table.corruption.partition("@")[2].replace(",", "\n") or table.corruption for table in steps]
    label_axes(axes, kind or "mean of types", f"{steps[-1].corruption.partition('@')[0]}, nominal rate")
    axes.set_xticks(places, ticks, rotation=30 if len(steps) > 3 else 0)
    axes.set_xlim(-0.1 * places[-1], 1.1 * places[-1])


def _changes(clean: ScoreTable, other: ScoreTable, row: ResultRow, kind: str | None) -> list[float]:
    """How much each task changes, or the mean of each type."""
    if kind is None:
        pairs = [(clean.mean(row, one), other.mean(row, one)) for one in clean.types]
    else:
        there = [task for task in clean.metrics if clean.kinds[task] == kind]
        pairs = [(clean.cells[row].get(task), other.cells[row].get(task)) for task in there]
    return [after - before for before, after in pairs if before is not None and after is not None]


MARKDOWN, CSV, HEATMAP, SLOPES = "summary.md", "summary.csv", "heatmap.png", "slopes.png"
_HEAD = ("model", "method", "prompt", "settings")


def write_summary(folder: ResultFolder, *, plots: bool = True) -> list[Path]:
    """Write the summary of a result folder into it.

    Args:
        folder: The results.
        plots: Also draw the heat map, and the slopes from clean to corrupted texts where there are both.

    Returns:
        The files.
    """
    scores = folder.scores()
    written: dict[str, str | bytes] = {MARKDOWN: summary(scores, folder.rates()).markdown(), CSV: scores_csv(scores)}
    if plots and scores:
        made = score_tables(scores)
        written[HEATMAP] = heatmap(made[0])
        drawn = slopes(made)
        written |= {SLOPES: drawn} if drawn else {}
    return write_files(folder.path, written)


def summary(scores: Sequence[TaskScore], rates: Sequence[Rate] = ()) -> Report:
    """All scores, in points of 100: for each corruption the means by type of task, then the single tasks."""
    if not scores:
        return Report("Results", ("Nothing is measured yet.",))
    versions = sorted({score.mteb_version for score in scores})
    parts: list[str | Table] = [
        f"Main scores of mteb {', '.join(versions)}, in points of 100. {MISSING}: not measured, or a mean over tasks of "
        "which some are not."
    ]
    local = {score.task: score.local_data for score in scores if score.local_data}
    if local:
        said = ", ".join(f"{task} ({revision})" for task, revision in sorted(local.items()))
        parts.append(f"Measured on local data, not fetched from the hub: {said}.")
    for table in score_tables(scores):
        parts.append(f"## {table.corruption}")
        found = [rate for rate in rates if rate.corruption == table.corruption]
        if found:
            words, tokens = sum(rate.words for rate in found), sum(rate.tokens for rate in found)
            realised = f"realised {tokens / words if words else 0.0:.4f} ({tokens:,} of {words:,} words)"
            parts.append(f"Nominal rate {found[0].nominal:g}, {realised}.")
        parts += _shown(table)
    return Report("Results", tuple(parts))


def means(table: ScoreTable) -> Table:
    """The means of every row under a short name, for the terminal."""
    names, common = labels(list(table.cells))
    title = ", ".join(part for part in (table.corruption, "points of 100", common) if part)
    return Table(("", *_mean_columns(table)), tuple((names[row], *_means(table, row)) for row in table.cells), title)


def scores_csv(scores: Sequence[TaskScore]) -> str:
    """One score a line, from 0 to 1."""
    names = [one.name for one in fields(TaskScore) if one.name != "path"]
    rows = [score.as_dict() | {"settings": json.dumps(score.settings, sort_keys=True)} for score in scores]
    return csv_text(names, [[row[name] for name in names] for row in rows])


def _shown(table: ScoreTable) -> list[Table]:
    """The means and the single tasks."""
    means, tasks = [], []
    for row, found in table.cells.items():
        head = (row.model, row.method, f"`{row.prompt}`" if row.prompt else "", row.settings)
        means.append((*head, *_means(table, row)))
        tasks.append((*head, *(points(found.get(task)) for task in table.metrics)))
    names = [f"{task} ({metric})" for task, metric in table.metrics.items()]
    shown = [(_mean_columns(table), means), (names, tasks)]
    return [Table((*_HEAD, *columns), tuple(rows), texts=len(_HEAD)).without_empty_columns() for columns, rows in shown]


def _mean_columns(table: ScoreTable) -> list[str]:
    counts = [f"{kind} ({sum(one == kind for one in table.kinds.values())})" for kind in table.types]
    return [*counts, "mean of types", f"mean of tasks ({len(table.metrics)})"]


def _means(table: ScoreTable, row: ResultRow) -> list[str]:
    """The means of a row."""
    of_types = [table.mean(row, kind) for kind in table.types]
    return [points(mean) for mean in (*of_types, table.mean_of_types(row), table.mean(row))]
