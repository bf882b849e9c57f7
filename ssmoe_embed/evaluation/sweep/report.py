"""A sweep as a report, as CSV and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.plots import GREY, draw_interval, house_style, label_axes, legend_below, new_figure, png
from ssmoe_embed.common.tables import Report, Table, csv_text, points
from ssmoe_embed.evaluation.significance.bootstrap import mean_interval
from ssmoe_embed.evaluation.sweep.running import MEAN, TEST_SET_WARNING, Axis, Point, SweepResult, value_label

_MOST_PANELS = 9
"""With more tasks than this only their mean is plotted."""
_COLUMNS = 3


def write_report(result: SweepResult, folder: Path, *, with_paper: bool = False) -> list[Path]:
    """Write `sweep.md`, `sweep.csv` and `sweep.png`, each atomically."""
    shown = report(result, with_paper=with_paper).markdown()
    picture = plot(result, with_paper=with_paper)
    return write_files(folder, {"sweep.md": shown, "sweep.csv": scores_csv(result), "sweep.png": picture})


def report(result: SweepResult, *, with_paper: bool = False) -> Report:
    """The sweep as tables; the best of every column in bold."""
    metrics = ", ".join(f"{task} {metric}" for task, metric in result.metrics.items())
    head = f"Texts: {result.corruption}. Scores in points of 100: {metrics}."
    tasks = columns(result)
    rows = [(*_labels(point), *(points(result.score(point, task), 2) for task in tasks)) for point in result.points]
    names = [axis.setting for axis in result.axes]
    scores = Table((*names, *tasks), tuple(rows), texts=len(names)).with_best()
    return Report(
        f"Sweep of {result.model}",
        (head, TEST_SET_WARNING, scores, *_held_out(result), *(_paper(result) if with_paper else ())),
    )


def columns(result: SweepResult) -> list[str]:
    """The tasks, and their mean where there are several."""
    return [*result.tasks, MEAN] if len(result.tasks) > 1 else result.tasks


def scores_csv(result: SweepResult) -> str:
    """The sweep as CSV, a line for each point and task; what was not measured is empty."""
    rows = []
    for point in result.points:
        for task, metric in result.metrics.items():
            score = result.score(point, task)
            value = None if score is None else f"{score:.4f}"
            rows.append((result.model, result.corruption, *_labels(point), task, metric, value))
    names = [axis.setting for axis in result.axes]
    return csv_text(["model", "corruption", *names, "task", "metric", "score"], rows)


def _labels(point: Point) -> tuple[str, ...]:
    return tuple(value_label(name, value) for name, value in point.values)


def _held_out(result: SweepResult) -> tuple[Table, ...]:
    rows = tuple((one.task, one.chosen.label, points(one.score, 2), points(one.best, 2)) for one in result.held_out())
    heads = ("task", "chosen on the others", "score", "best of all points on the task itself")
    return (Table(heads, rows, "Settings chosen on the other tasks", texts=2),) if rows else ()


def _paper(result: SweepResult) -> tuple[str | Table, ...]:
    numbers = result.paper()
    if not numbers:
        return ("The paper's table 6 has none of these tasks and settings.",)
    tasks = [task for task in result.tasks if task in {number.task for number in numbers}]
    found = {(number.setting, number.value, number.task): points(number.score) for number in numbers}
    rows = tuple(
        (setting, f"{value:g}", *(found[setting, value, task] for task in tasks))
        for setting, value in dict.fromkeys((number.setting, number.value) for number in numbers)
    )
    title = "The paper's table 6 (OLMoE-7B, accuracy; the other setting's value is not told)"
    return (Table(("setting", "value", *tasks), rows, title),)


def x_axis(axes: Sequence[Axis]) -> Axis:
    """The axis to plot against: α, else the one with the most numbers, else the one with the most values."""
    alphas = [axis for axis in axes if axis.setting == "alpha" and len(axis.values) > 1]
    return (alphas or sorted(axes, key=lambda axis: (axis.is_numeric and len(axis.values) > 1, len(axis.values))))[-1]


@house_style
def plot(result: SweepResult, *, with_paper: bool = False) -> bytes:
    """The sweep as a PNG: a panel a task and one for their mean, a line for each combination of the other axes.

    Bars in the panel of the mean are 95 % intervals of its change from the line's first point, tasks being drawn again.
    """
    across = x_axis(result.axes)
    panels = columns(result) if len(columns(result)) <= _MOST_PANELS else [MEAN]
    wide = min(len(panels), _COLUMNS)
    high = -(-len(panels) // wide)
    figure, grid = new_figure(max(4.2 * wide, 5.5), 3.3 * high + 0.8, high, wide)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, panels, strict=False):
        _draw(axes, result, across, task)
        if with_paper:
            values = sorted((n.value, n.score) for n in result.paper() if (n.task, n.setting) == (task, across.setting))
            if values and across.is_numeric:
                label = "paper, OLMoE-7B (table 6)"
                axes.plot(*zip(*values, strict=True), "--s", color=GREY, label=label)
        metric = result.metrics.get(task)
        title = f"{task}\n({metric})" if metric else f"mean of {len(result.tasks)} tasks"
        label_axes(axes, title, "α" if across.setting == "alpha" else across.setting)
    legend_below(figure)
    figure.supylabel("score × 100")
    texts = "" if result.corruption == "clean" else f", {result.corruption}"
    figure.suptitle(f"{result.model}{texts}: scores on test data")
    return png(figure)


def _draw(axes: Any, result: SweepResult, across: Axis, task: str) -> None:
    """The lines of one panel."""
    names = [value_label(across.setting, value) for value in across.values]
    places = list(across.values) if across.is_numeric else list(range(len(names)))
    order = sorted(range(len(places)), key=places.__getitem__)
    told = {axis.setting for axis in result.axes if len(axis.values) > 1 and axis.setting != across.setting}
    lines: dict[str, dict[str, Point]] = {}
    for point in result.points:
        rest = Point(tuple(pair for pair in point.values if pair[0] in told))
        line = lines.setdefault(rest.label if rest.values else result.model, {})
        line[value_label(across.setting, point[across.setting])] = point
    for label, line in lines.items():
        there = [(places[i], line[names[i]]) for i in order if result.score(line[names[i]], task) is not None]
        scores = [result.score(point, task) or 0.0 for _, point in there]
        axes.plot([x for x, _ in there], scores, marker="o", label=label)
        for (x, point), score in list(zip(there, scores, strict=True))[1:] if task == MEAN else ():
            pairs = [(result.scores[there[0][1], one], result.scores[point, one]) for one in result.tasks]
            ends = mean_interval([after - before for before, after in pairs])
            draw_interval(axes, x, score, ends and (scores[0] + ends[0], scores[0] + ends[1]))
    if not across.is_numeric:
        axes.set_xticks(places, names, rotation=30, ha="right")
    elif across.setting == "top_c":
        axes.set_xscale("log")
        axes.set_xticks(places, names, minor=False)
        axes.minorticks_off()
    elif len(places) <= 12:
        axes.set_xticks(places)
