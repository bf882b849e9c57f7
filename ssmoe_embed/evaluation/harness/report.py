"""A grid's results as tables: scores as in the paper's tables 1, 5 and 12, flips as in 13, overlap as in 15."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ssmoe_embed.common.tables import MISSING, Report, Table, csv_text
from ssmoe_embed.evaluation.harness.grid import GRID, PAPER_TASKS
from ssmoe_embed.evaluation.harness.results import GridFolder, TaskResult, folder_flips

_SHORT = {task: name for name, task in PAPER_TASKS.items()}


def tables(folder: GridFolder) -> list[Table]:
    """All that a folder's results show."""
    results = folder.results()
    shots = folder.settings()["num_fewshot"]
    found = [_scores(results, shots), _flips(folder), _overlap(results), _perplexities(folder)]
    return [table for table in found if table.rows]


def report(folder: GridFolder) -> Report:
    """The tables in one report."""
    settings = folder.settings()
    return Report(f"Routings of {settings['base']}", tuple(tables(folder)))


def scores_csv(folder: GridFolder) -> str:
    """One line a cell and task."""
    heads = ("cell", "task", "metric", "score", "stderr", "examples", "weight_bytes", "overlap", "overlap_chance")
    rows = []
    for one in _sorted(folder.results()):
        shared = (one.overlap["share"], one.overlap["chance_share"]) if one.overlap else (None, None)
        rows.append((one.cell, one.task, one.metric, one.score, one.stderr, one.examples, one.weight_bytes, *shared))
    return csv_text(heads, rows)


def _scores(results: Sequence[TaskResult], shots: int | None) -> Table:
    """Scores with standard errors, their mean where all tasks were measured, and memory."""
    tasks, by = _tasks(results), {(one.cell, one.task): one for one in results}
    rows = []
    for cell in _cells(results):
        of_cell = [by[cell, task] for task in tasks if (cell, task) in by]
        shown = [_score(by[cell, task]) if (cell, task) in by else MISSING for task in tasks]
        rows.append((cell, f"{of_cell[0].weight_bytes / 1e6:,.2f}", *shown, _average(of_cell, len(tasks))))
    said = "the tasks' own shots" if shots is None else f"{shots}-shot"
    heads = ("cell", "MB", *(_SHORT.get(task, task) for task in tasks), "mean")
    local = {one.task: one.data for one in results if one.data}
    told = ", ".join(f"{task} ({revision})" for task, revision in sorted(local.items()))
    notes = (f"Measured on local data, not fetched from the hub: {told}.",) if local else ()
    return Table(heads, tuple(rows), f"Scores ± standard error, points of 100, {said}", notes=notes)


def _flips(folder: GridFolder) -> Table:
    flips = folder_flips(folder)
    results = folder.results()
    order = [(cell, task) for cell in _cells(results) for task in _tasks(results) if (cell, task) in flips]
    rows = []
    for cell, task in order:
        one = flips[cell, task]
        numbers = (one.first, one.second, one.flip_rate, one.correct_to_wrong, one.wrong_to_correct)
        rows.append(
            (cell, _SHORT.get(task, task), *(f"{100 * number:.1f}" for number in numbers), f"{one.p_value:.3f}")
        )
    heads = ("cell", "task", "original", "cell's", "flips", "right → wrong", "wrong → right", "p (McNemar)")
    return Table(heads, tuple(rows), "Answer flips against the original model, points of 100", texts=2)


def _overlap(results: Sequence[TaskResult]) -> Table:
    rows = []
    for one in _sorted(results):
        if one.overlap is not None:
            names = ("share", "chance_share", "jaccard", "chance_jaccard")
            rows.append((one.cell, _SHORT.get(one.task, one.task), *(f"{one.overlap[name]:.4f}" for name in names)))
    heads = ("cell", "task", "share of k", "by chance", "Jaccard", "by chance")
    return Table(heads, tuple(rows), "Experts in common with the model's own routers", texts=2)


def _perplexities(folder: GridFolder) -> Table:
    order = [cell.name for cell in GRID]
    found = sorted(
        folder.perplexities(), key=lambda one: (order.index(one.cell) if one.cell in order else len(order), one.cell)
    )
    rows = [
        (one.cell, one.text, f"{one.value:.2f}", f"{one.nll:.4f} ± {one.stderr:.4f}", f"{one.tokens:,}")
        for one in found
    ]
    return Table(("cell", "text", "perplexity", "nats per token", "tokens"), tuple(rows), "Perplexity", texts=2)


def _score(result: TaskResult) -> str:
    error = "" if result.stderr is None else f" ± {100 * result.stderr:.1f}"
    return f"{100 * result.score:.1f}{error}"


def _average(results: Sequence[TaskResult], wanted: int) -> str:
    """The mean score, its standard error that of independent tasks; nothing where a task is missing."""
    if len(results) < wanted:
        return MISSING
    mean = 100 * sum(one.score for one in results) / wanted
    errors = [one.stderr for one in results if one.stderr is not None]
    if len(errors) < wanted:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * math.sqrt(sum(error**2 for error in errors)) / wanted:.1f}"


def _cells(results: Sequence[TaskResult]) -> list[str]:
    """Names of the measured cells, those of the paper first and in its order."""
    order = [cell.name for cell in GRID]
    found = {one.cell for one in results}
    return [name for name in order if name in found] + sorted(found - set(order))


def _tasks(results: Sequence[TaskResult]) -> list[str]:
    order = list(PAPER_TASKS.values())
    found = {one.task for one in results}
    return [name for name in order if name in found] + sorted(found - set(order))


def _sorted(results: Sequence[TaskResult]) -> list[TaskResult]:
    cells, tasks = _cells(results), _tasks(results)
    return sorted(results, key=lambda one: (cells.index(one.cell), tasks.index(one.task)))
