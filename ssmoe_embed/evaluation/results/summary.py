"""The results of a folder as Markdown, CSV and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.tables import MISSING, Report, Table, csv_text, points
from ssmoe_embed.evaluation.results.folder import Rate, ResultFolder, TaskScore
from ssmoe_embed.evaluation.results.score_tables import ResultRow, ScoreTable, labels, score_tables

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
        from ssmoe_embed.evaluation.results.plots import heatmap, slopes

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
    for table in score_tables(scores):
        found = [rate for rate in rates if rate.corruption == table.corruption]
        parts += [f"## {table.corruption}", *([_rate(found)] if found else []), *_shown(table)]
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


def _shown(table: ScoreTable) -> tuple[Table, Table]:
    """The means and the single tasks."""
    head = {row: (row.model, row.method, f"`{row.prompt}`" if row.prompt else "", row.settings) for row in table.cells}
    tasks = [f"{task} ({metric})" for task, metric in table.metrics.items()]
    of_types = [(*head[row], *_means(table, row)) for row in table.cells]
    of_tasks = [
        (*head[row], *(points(found.get(task)) for task in table.metrics)) for row, found in table.cells.items()
    ]
    shown = (
        Table((*_HEAD, *_mean_columns(table)), tuple(of_types), texts=len(_HEAD)),
        Table((*_HEAD, *tasks), tuple(of_tasks), texts=len(_HEAD)),
    )
    return shown[0].without_empty_columns(), shown[1].without_empty_columns()


def _mean_columns(table: ScoreTable) -> list[str]:
    counts = [f"{kind} ({sum(one == kind for one in table.kinds.values())})" for kind in table.types]
    return [*counts, "mean of types", f"mean of tasks ({len(table.metrics)})"]


def _means(table: ScoreTable, row: ResultRow) -> list[str]:
    """The means of a row."""
    return [
        points(mean)
        for mean in (*(table.mean(row, kind) for kind in table.types), table.mean_of_types(row), table.mean(row))
    ]


def _rate(found: Sequence[Rate]) -> str:
    """How much of the texts was corrupted."""
    words, tokens = sum(rate.words for rate in found), sum(rate.tokens for rate in found)
    realised = tokens / words if words else 0.0
    return f"Nominal rate {found[0].nominal:g}, realised {realised:.4f} ({tokens:,} of {words:,} words)."
