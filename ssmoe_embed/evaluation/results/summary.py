"""The results of a folder as Markdown, CSV and plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.evaluation.results.folder import Rate, ResultFolder, Score
from ssmoe_embed.evaluation.results.tables import Row, Table, tables

MARKDOWN, CSV, HEATMAP, SLOPES = "summary.md", "summary.csv", "heatmap.png", "slopes.png"
_NOT_MEASURED = "–"


def write_summary(folder: ResultFolder, *, plots: bool = True) -> list[Path]:
    """Write the summary of a result folder into it.

    Args:
        folder: The results.
        plots: Also draw the heat map, and the slopes from clean to corrupted texts where there are both.

    Returns:
        The files.
    """
    scores = folder.scores()
    written = {MARKDOWN: markdown(scores, folder.rates()).encode(), CSV: csv_text(scores).encode()}
    if plots and scores:
        from ssmoe_embed.evaluation.results.plots import heatmap, slopes

        made = tables(scores)
        written[HEATMAP] = heatmap(made[0])
        drawn = slopes(made)
        written |= {SLOPES: drawn} if drawn else {}
    for name, content in written.items():
        with atomic_file(folder.path / name) as file:
            file.write(content)
    return [folder.path / name for name in written]


def markdown(scores: Sequence[Score], rates: Sequence[Rate] = ()) -> str:
    """All tables, in points of 100: for each corruption the means by type of task, then the single tasks."""
    if not scores:
        return "# Results\n\nNothing is measured yet.\n"
    versions = sorted({score.mteb_version for score in scores})
    lines = [
        "# Results",
        "",
        f"Main scores of mteb {', '.join(versions)}, in points of 100. {_NOT_MEASURED}: not measured, or a mean over tasks "
        "of which some are not.",
    ]
    for table in tables(scores):
        lines += ["", f"## {table.corruption}", ""]
        found = [rate for rate in rates if rate.corruption == table.corruption]
        if found:
            words, tokens = sum(rate.words for rate in found), sum(rate.tokens for rate in found)
            realised = tokens / words if words else 0.0
            lines += [
                f"Nominal rate {found[0].nominal:g}, realised {realised:.4f} ({tokens:,} of {words:,} words).",
                "",
            ]
        lines += _means(table)
        lines += ["", *_tasks(table)]
    return "\n".join(lines) + "\n"


def mean_columns(table: Table) -> list[str]:
    """Names of the columns of `mean_cells`."""
    counts = [f"{kind} ({sum(one == kind for one in table.kinds.values())})" for kind in table.types]
    return [*counts, "mean of types", f"mean of tasks ({len(table.metrics)})"]


def mean_cells(table: Table, row: Row) -> list[str]:
    """The means of a row, as text."""
    means = [*(table.mean(row, kind) for kind in table.types), table.mean_of_types(row), table.mean(row)]
    return [_number(mean) for mean in means]


def csv_text(scores: Sequence[Score]) -> str:
    """One score a line, from 0 to 1."""
    output = io.StringIO()
    names = [one.name for one in fields(Score) if one.name != "path"]
    writer = csv.DictWriter(output, names, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        writer.writerow(score.as_dict() | {"settings": json.dumps(score.settings, sort_keys=True)})
    return output.getvalue()


def _means(table: Table) -> list[str]:
    rows = [[*_head(row), *mean_cells(table, row)] for row in table.cells]
    return _markdown_table(["model", "method", "prompt", "settings", *mean_columns(table)], rows)


def _tasks(table: Table) -> list[str]:
    columns = [f"{task} ({metric})" for task, metric in table.metrics.items()]
    rows = [[*_head(row), *(_number(found.get(task)) for task in table.metrics)] for row, found in table.cells.items()]
    return _markdown_table(["model", "method", "prompt", "settings", *columns], rows)


def _head(row: Row) -> list[str]:
    return [row.model, row.method, f"`{row.prompt}`" if row.prompt else "", row.settings]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without the columns before the numbers that are empty in all rows."""
    kept = [i for i in range(len(columns)) if i > 3 or any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], ["---" if i <= 3 else "---:" for i in kept]]
    lines += [[row[i].replace("|", "\\|").replace("\n", " ") for i in kept] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _number(value: float | None) -> str:
    return _NOT_MEASURED if value is None else f"{value:.1f}"
