"""Scores of a grid on disk: one JSON file for a cell and task, and one line an example beside it; and as tables.

The tables show scores as the SSMoE paper's tables 1, 5 and 12 do, flips as its table 13, overlap as its table 15.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scipy.stats import binomtest

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.common.tables import MISSING, Report, Table, csv_text
from ssmoe_embed.evaluation.harness.grid import GRID, PAPER_TASKS

SETTINGS = "lm_eval.json"
_CELLS = {cell.name: place for place, cell in enumerate(GRID)}
_TASKS = {task: place for place, task in enumerate(PAPER_TASKS.values())}
_SHORT = {task: name for name, task in PAPER_TASKS.items()}


@dataclass(frozen=True)
class TaskResult:
    """What one cell scored on one task.

    Attributes:
        task: The harness' name of the task.
        metric: The harness' key of the score.
        score: 0 to 1.
        stderr: Its standard error as the harness gives it; None if it gives none.
        examples: Test examples.
        metrics: Everything that the harness scored.
        weight_bytes: Memory of the cell's weights.
        overlap: Experts in common with the model's own routing, see `Overlap`; None for the own routing, and where the
            number of experts differs from token to token.
        version: Of the harness.
        data: `local-` and a hash where the task's data came from a folder, else empty.
    """

    cell: str
    task: str
    metric: str
    score: float
    stderr: float | None
    examples: int
    metrics: dict[str, Any]
    weight_bytes: int
    overlap: dict[str, Any] | None
    version: str
    data: str = ""


@dataclass(frozen=True)
class TextResult:
    """How well one cell predicts a text, see `Perplexity`.

    Attributes:
        text: Name of the text file.
        digest: Of its content.
    """

    cell: str
    text: str
    digest: str
    value: float
    nll: float
    stderr: float
    tokens: int
    window: int
    stride: int


@dataclass(frozen=True)
class GridFolder:
    """The folder of a grid's results."""

    path: Path

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Note what the folder's results were measured with; results of other settings must not mix with them.

        Raises:
            ValueError: The folder's results have other settings.
        """
        file = self.path / SETTINGS
        if all(path == file for path in self.path.glob("*")):
            _write(file, settings)  # nothing was measured yet
            return
        if not file.is_file():
            raise ValueError(
                f"{self.path} is not empty and holds no results of `ssmoe lm-eval`; choose another --output."
            )
        found, wanted = self.settings(), json.loads(json.dumps(settings))
        differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if differing:
            said = ", ".join(f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}" for name in differing)
            raise ValueError(f"{self.path} holds results measured with {said}; choose another --output.")

    def settings(self) -> dict[str, Any]:
        """What the results were measured with.

        Raises:
            FileNotFoundError: It is no such folder.
        """
        file = self.path / SETTINGS
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} holds no results of `ssmoe lm-eval`: there is no {SETTINGS} in it.")
        return _read(file)

    def check_data(self, revisions: Mapping[str, str]) -> None:
        """Make sure that results of these tasks were measured on the same data.

        Raises:
            ValueError: Some were measured on others.
        """
        for result in self.results():
            wanted = revisions.get(result.task, result.data)
            if result.data != wanted:
                raise ValueError(
                    f"{self.path} holds a result of {result.task} on {result.data or 'the hub'}'s data, and now they are "
                    f"{wanted or 'the hub'}'s; choose another --output."
                )

    def has(self, cell: str, task: str) -> bool:
        """Whether that cell's score on that task is there."""
        return self._file("cells", cell, f"{task}.json").is_file()

    def write(self, result: TaskResult, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep a score and its examples, which come first, so that a score is never without them."""
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        with atomic_file(self._file("cells", result.cell, f"{result.task}.examples.jsonl")) as file:
            file.write(lines.encode())
        _write(self._file("cells", result.cell, f"{result.task}.json"), asdict(result))

    def results(self) -> list[TaskResult]:
        """Every score, cell by cell: cells and tasks of the paper first and in its order."""
        found = [TaskResult(**_read(file)) for file in (self.path / "cells").glob("*/*.json")]
        return sorted(found, key=lambda one: (*_place(one.cell, _CELLS), *_place(one.task, _TASKS)))

    def perplexities(self) -> list[TextResult]:
        """Every perplexity, in the same order of cells."""
        found = [TextResult(**_read(file)) for file in (self.path / "perplexity").glob("*/*.json")]
        return sorted(found, key=lambda one: (*_place(one.cell, _CELLS), one.digest))

    def has_perplexity(self, cell: str, digest: str) -> bool:
        """Whether that cell's perplexity of that text is there."""
        return self._file("perplexity", cell, f"{digest}.json").is_file()

    def write_perplexity(self, result: TextResult) -> None:
        """Keep a perplexity."""
        _write(self._file("perplexity", result.cell, f"{result.digest}.json"), asdict(result))

    def correct(self, cell: str, task: str) -> dict[str, float]:
        """What each example scored, by a key that is the same in every cell."""
        file = self._file("cells", cell, f"{task}.examples.jsonl")
        if not file.is_file():
            raise FileNotFoundError(f"There are no examples at {file}; run `ssmoe lm-eval` again.")
        with file.open(encoding="utf-8") as lines:  # a prompt may hold Unicode's other ends of lines
            examples = [json.loads(line) for line in lines]
        return {f"{one['task']}:{one['doc_id']}:{one['doc_hash']}": one["score"] for one in examples}

    def _file(self, kind: str, cell: str, name: str) -> Path:
        """A file of one cell, whose folder has a name that any system allows."""
        return self.path / kind / quote(cell, safe="+=,") / name


def _place(name: str, order: Mapping[str, int]) -> tuple[int, str]:
    """What names are sorted by: those that have a place in an order first, then by the alphabet."""
    return order.get(name, len(order)), name


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Flips:
    """How two models' answers to the same examples differ.

    Attributes:
        first: Share that the first model has right.
        second: Share that the second has right.
        correct_to_wrong: Share that only the first has right.
        wrong_to_correct: Share that only the second has right.
        p_value: Two-sided exact McNemar test of the two being equally likely.
        examples: Number of examples.
    """

    first: float
    second: float
    correct_to_wrong: float
    wrong_to_correct: float
    p_value: float
    examples: int

    @property
    def flip_rate(self) -> float:
        """Share of examples that flip either way."""
        return self.correct_to_wrong + self.wrong_to_correct


def answer_flips(first: Mapping[str, float], second: Mapping[str, float]) -> Flips:
    """Compare two models example by example.

    Args:
        first: What each example scored with the first model, 1 for right and 0 for wrong.
        second: With the second.

    Raises:
        ValueError: The examples differ, there are none, or a score is neither 0 nor 1.
    """
    if first.keys() != second.keys() or not first:
        raise ValueError(
            f"Answers are compared example by example, and these are {len(first)} and {len(second)} examples of which "
            f"{len(first.keys() & second.keys())} are the same; evaluate both models on the same ones."
        )
    if {*first.values(), *second.values()} - {0.0, 1.0}:
        raise ValueError("Answers flip where each is right or wrong; this task scores its examples otherwise.")
    count = len(first)
    lost = sum(first[key] > second[key] for key in first)
    won = sum(first[key] < second[key] for key in first)
    right = sum(first.values()) / count, sum(second.values()) / count
    p_value = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return Flips(*right, lost / count, won / count, p_value, count)


def folder_flips(folder: GridFolder, base: str = "original") -> dict[tuple[str, str], Flips]:
    """Each cell's flips against the base cell, by cell and task; tasks without right and wrong answers are left out."""
    found = {}
    measured = [(result.cell, result.task) for result in folder.results()]
    for cell, task in measured:
        if cell == base or (base, task) not in measured:
            continue
        scores = folder.correct(base, task), folder.correct(cell, task)
        if not {*scores[0].values(), *scores[1].values()} - {0.0, 1.0}:
            found[cell, task] = answer_flips(*scores)
    return found


def report(folder: GridFolder) -> Report:
    """The tables in one report."""
    return Report(f"Routings of {folder.settings()['base']}", tuple(tables(folder)))


def tables(folder: GridFolder) -> list[Table]:
    """All that a folder's results show: scores, flips, overlap and perplexity."""
    results = folder.results()
    flips = []
    for (cell, task), one in folder_flips(folder).items():
        shares = (one.first, one.second, one.flip_rate, one.correct_to_wrong, one.wrong_to_correct)
        flips.append((cell, _SHORT.get(task, task), *(f"{100 * share:.1f}" for share in shares), f"{one.p_value:.3f}"))
    measures = ("share", "chance_share", "jaccard", "chance_jaccard")
    overlaps = [
        (one.cell, _SHORT.get(one.task, one.task), *(f"{one.overlap[name]:.4f}" for name in measures))
        for one in results
        if one.overlap is not None
    ]
    perplexities = [
        (one.cell, one.text, f"{one.value:.2f}", f"{one.nll:.4f} ± {one.stderr:.4f}", f"{one.tokens:,}")
        for one in folder.perplexities()
    ]
    of_flips = ("cell", "task", "original", "cell's", "flips", "right → wrong", "wrong → right", "p (McNemar)")
    of_overlaps = ("cell", "task", "share of k", "by chance", "Jaccard", "by chance")
    of_perplexities = ("cell", "text", "perplexity", "nats per token", "tokens")
    found = [
        _scores(results, folder.settings()["num_fewshot"]),
        Table(of_flips, tuple(flips), "Answer flips against the original model, points of 100", texts=2),
        Table(of_overlaps, tuple(overlaps), "Experts in common with the model's own routers", texts=2),
        Table(of_perplexities, tuple(perplexities), "Perplexity", texts=2),
    ]
    return [table for table in found if table.rows]


def scores_csv(folder: GridFolder) -> str:
    """One line a cell and task."""
    heads = ("cell", "task", "metric", "score", "stderr", "examples", "weight_bytes", "overlap", "overlap_chance")
    rows = []
    for one in folder.results():
        shared = (one.overlap["share"], one.overlap["chance_share"]) if one.overlap else (None, None)
        rows.append((one.cell, one.task, one.metric, one.score, one.stderr, one.examples, one.weight_bytes, *shared))
    return csv_text(heads, rows)


def _scores(results: Sequence[TaskResult], shots: int | None) -> Table:
    """Scores with standard errors, their mean where all tasks were measured, and memory."""
    tasks = sorted({one.task for one in results}, key=lambda task: _place(task, _TASKS))
    rows = []
    for cell in dict.fromkeys(one.cell for one in results):
        found = {one.task: one for one in results if one.cell == cell}
        shown = [_points(found[task].score, found[task].stderr) if task in found else MISSING for task in tasks]
        mean = MISSING
        if len(found) == len(tasks):  # its standard error is that of independent tasks
            squares = [one.stderr**2 for one in found.values() if one.stderr is not None]
            error = math.sqrt(sum(squares)) if len(squares) == len(tasks) else None
            mean = _points(sum(one.score for one in found.values()), error, len(tasks))
        size = next(iter(found.values())).weight_bytes
        rows.append((cell, f"{size / 1e6:,.2f}", *shown, mean))
    said = "the tasks' own shots" if shots is None else f"{shots}-shot"
    heads = ("cell", "MB", *(_SHORT.get(task, task) for task in tasks), "mean")
    local = {one.task: one.data for one in results if one.data}
    told = ", ".join(f"{task} ({revision})" for task, revision in sorted(local.items()))
    notes = (f"Measured on local data, not fetched from the hub: {told}.",) if local else ()
    return Table(heads, tuple(rows), f"Scores ± standard error, points of 100, {said}", notes=notes)


def _points(score: float, error: float | None, count: int = 1) -> str:
    """The mean of so many scores of 0 to 1, of which this is the sum, with its standard error, in points of 100."""
    return f"{100 * score / count:.1f}" + ("" if error is None else f" ± {100 * error / count:.1f}")
