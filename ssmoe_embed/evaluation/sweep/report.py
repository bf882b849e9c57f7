"""A sweep as a Markdown table, as CSV and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.evaluation.paper.embeddings import Ablation
from ssmoe_embed.evaluation.paper.table import NOTHING, markdown_row
from ssmoe_embed.evaluation.sweep.axes import Axis, Point, value_label
from ssmoe_embed.evaluation.sweep.result import MEAN, TEST_SET_WARNING, SweepResult

_MOST_PANELS = 9
"""With more tasks than this only their mean is plotted."""
_COLUMNS = 3
_PAPER_COLOR = "0.45"


def write_report(result: SweepResult, folder: Path, *, with_paper: bool = False) -> list[Path]:
    """Write `sweep.md`, `sweep.csv` and `sweep.png`, each atomically.

    Args:
        result: What was measured.
        folder: Where to.
        with_paper: Put the paper's table 6 beside it.
    """
    written = []
    contents = {"sweep.md": markdown(result, with_paper=with_paper).encode(), "sweep.csv": csv_text(result).encode()}
    contents["sweep.png"] = plot(result, with_paper=with_paper)
    for name, content in contents.items():
        with atomic_file(folder / name) as file:
            file.write(content)
        written.append(folder / name)
    return written


def columns(result: SweepResult) -> list[str]:
    """The tasks, and their mean where there are several."""
    return [*result.tasks, MEAN] if len(result.tasks) > 1 else result.tasks


def cells(result: SweepResult, point: Point) -> list[str]:
    """A line of the table: the values, then the scores."""
    scores = (result.score(point, task) for task in columns(result))
    return [
        *(value_label(name, value) for name, value in point.values),
        *(NOTHING if score is None else f"{score:.2f}" for score in scores),
    ]


def markdown(result: SweepResult, *, with_paper: bool = False) -> str:
    """The sweep as a Markdown document; the best of every column in bold."""
    head = [axis.setting for axis in result.axes] + columns(result)
    lines = [f"# Sweep of {result.model}", "", f"Texts: {result.corruption}. Scores in points of 100: "]
    lines[-1] += f"{', '.join(f'{task} {metric}' for task, metric in result.metrics.items())}."
    lines += ["", f"**{TEST_SET_WARNING}**", "", markdown_row(head), f"|{'---|' * len(head)}"]
    rows = [cells(result, point) for point in result.points]
    first = len(result.axes)
    for column in range(first, len(head)):
        values = [float(row[column]) for row in rows if row[column] != NOTHING]
        for row in rows:
            if row[column] != NOTHING and float(row[column]) == max(values):
                row[column] = f"**{row[column]}**"
    lines += [markdown_row(row) for row in rows]
    lines += _held_out(result)
    if with_paper:
        lines += _paper(result)
    return "\n".join([*lines, ""])


def _held_out(result: SweepResult) -> list[str]:
    found = result.held_out()
    if not found:
        return []
    lines = ["", "## Settings chosen on the other tasks", ""]
    lines += [markdown_row(["task", "chosen on the others", "score", "best of all points on the task itself"])]
    lines += ["|---|---|---:|---:|"]
    return lines + [markdown_row([one.task, one.chosen.label, f"{one.score:.2f}", f"{one.best:.2f}"]) for one in found]


def _paper(result: SweepResult) -> list[str]:
    numbers = result.paper()
    if not numbers:
        return ["", "The paper's table 6 has none of these tasks and settings."]
    lines = ["", "## The paper's table 6 (OLMoE-7B, accuracy; the other setting's value is not told)", ""]
    tasks = [task for task in result.tasks if task in {number.task for number in numbers}]
    found = {(number.setting, number.value, number.task): f"{number.score:.1f}" for number in numbers}
    lines += [markdown_row(["setting", "value", *tasks]), f"|---|---:|{'---:|' * len(tasks)}"]
    for setting, value in dict.fromkeys((number.setting, number.value) for number in numbers):
        lines.append(markdown_row([setting, f"{value:g}", *(found[setting, value, task] for task in tasks)]))
    return lines


def csv_text(result: SweepResult) -> str:
    """The sweep as CSV, a line for each point and task; what was not measured is empty."""
    file = io.StringIO()
    names = [axis.setting for axis in result.axes]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "corruption", *names, "task", "metric", "score"])
    for point in result.points:
        values = [value_label(name, value) for name, value in point.values]
        for task, metric in result.metrics.items():
            score = result.score(point, task)
            writer.writerow(
                [result.model, result.corruption, *values, task, metric, "" if score is None else f"{score:.4f}"]
            )
    return file.getvalue()


def x_axis(axes: Sequence[Axis]) -> Axis:
    """The axis to plot against: α, else the one with the most numbers, else the one with the most values."""
    alphas = [axis for axis in axes if axis.setting == "alpha" and len(axis.values) > 1]
    return (alphas or sorted(axes, key=lambda axis: (axis.is_numeric and len(axis.values) > 1, len(axis.values))))[-1]


def plot(result: SweepResult, *, with_paper: bool = False) -> bytes:
    """The sweep as a PNG: a panel a task and one for their mean, a line for each combination of the other axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = x_axis(result.axes)
    panels = columns(result) if len(columns(result)) <= _MOST_PANELS else [MEAN]
    wide = min(len(panels), _COLUMNS)
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(max(4.2 * wide, 5.5), 3.3 * high + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    for position, task in enumerate(panels, start=1):
        axes = figure.add_subplot(high, wide, position)
        _draw(axes, result, across, task)
        if with_paper:
            _draw_paper(axes, across, [n for n in result.paper() if (n.task, n.setting) == (task, across.setting)])
        axes.set_title(_title(result, task), fontsize=10)
        axes.set_xlabel("α" if across.setting == "alpha" else across.setting)
        axes.grid(visible=True, alpha=0.3)
    handles = {
        label: handle for one in figure.axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    if len(handles) > 1:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 4), frameon=False
        )
    figure.supylabel("score × 100")
    texts = "" if result.corruption == "clean" else f", {result.corruption}"
    figure.suptitle(f"{result.model}{texts}: scores on test data", fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _title(result: SweepResult, task: str) -> str:
    """A panel's title; the metric is on a line of its own."""
    return f"{task}\n({result.metrics[task]})" if task in result.metrics else f"mean of {len(result.tasks)} tasks"


def _draw(axes: Any, result: SweepResult, across: Axis, task: str) -> None:
    """The lines of one panel."""
    names = [value_label(across.setting, value) for value in across.values]
    places = list(across.values) if across.is_numeric else list(range(len(names)))
    order = sorted(range(len(places)), key=places.__getitem__)
    told = {axis.setting for axis in result.axes if len(axis.values) > 1 and axis.setting != across.setting}
    lines: dict[str, dict[str, float | None]] = {}
    for point in result.points:
        rest = Point(tuple(pair for pair in point.values if pair[0] in told))
        line = lines.setdefault(rest.label if rest.values else result.model, {})
        line[value_label(across.setting, point[across.setting])] = result.score(point, task)
    for label, scores in lines.items():
        there = [(places[i], scores[names[i]]) for i in order if scores[names[i]] is not None]
        axes.plot([x for x, _ in there], [y for _, y in there], marker="o", markersize=4, label=label)
    if not across.is_numeric:
        axes.set_xticks(places, names, rotation=30, ha="right")
    elif across.setting == "top_c":
        axes.set_xscale("log")
        axes.set_xticks(places, names, minor=False)
        axes.minorticks_off()
    elif len(places) <= 12:
        axes.set_xticks(places)


def _draw_paper(axes: Any, across: Axis, numbers: Sequence[Ablation]) -> None:
    """The paper's own curve."""
    if numbers and across.is_numeric:
        values = sorted((number.value, number.score) for number in numbers)
        label = "paper, OLMoE-7B (table 6)"
        axes.plot([x for x, _ in values], [y for _, y in values], "--s", color=_PAPER_COLOR, markersize=3, label=label)
