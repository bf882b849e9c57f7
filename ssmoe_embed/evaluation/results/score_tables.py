"""Scores arranged in rows (a model's method and prompt, or a baseline) and columns (tasks), with means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.evaluation.results.folder import TaskScore

_TYPES = ("Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS", "Summarization")
"""The order of the kinds of task; others follow by name."""
_METHODS = [str(method) for method in Method]


@dataclass(frozen=True)
class ResultRow:
    """What a row of a table is about.

    Attributes:
        model: The model's or baseline's name, with its revision where the table holds several.
        method: The representation; empty for a baseline.
        prompt: The template; empty for a baseline.
        settings: What else differs from the model's own, as text.
    """

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
        tasks = [task for task in self.metrics if kind in (None, self.kinds[task])]
        found = [self.cells[row][task] for task in tasks if task in self.cells[row]]
        return fmean(found) if tasks and len(found) == len(tasks) else None

    def mean_of_types(self, row: ResultRow) -> float | None:
        """Mean of the types' means; None unless all tasks were measured."""
        means = [self.mean(row, kind) for kind in self.types]
        known = [mean for mean in means if mean is not None]
        return fmean(known) if known and len(known) == len(means) else None


def score_tables(scores: Sequence[TaskScore]) -> list[ScoreTable]:
    """One table a corruption, clean texts first, all with the same columns."""
    several = _several_revisions(scores)
    ordered = sorted(scores, key=lambda score: (_rank(score.task_type, _TYPES), score.task_type, score.task))
    metrics = {score.task: score.metric for score in ordered}
    kinds = {score.task: score.task_type for score in ordered}
    found = []
    for corruption in sorted({score.corruption for score in scores}, key=corruption_order):
        cells: dict[ResultRow, dict[str, float]] = {}
        chosen = [score for score in scores if score.corruption == corruption]
        for score in sorted(chosen, key=_row_order):
            cells.setdefault(_row(score, several), {})[score.task] = 100 * score.score
        found.append(ScoreTable(corruption, metrics, kinds, cells))
    return found


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


def corruption_order(name: str) -> tuple[object, ...]:
    """A key that sorts clean texts first, then each operation by its rate."""
    operation, _, rest = name.partition("@")
    rate = rest.partition(",")[0]
    return (name != "clean", operation != "replace", operation, float(rate) if rate else 0.0, name)


def _row(score: TaskScore, several: frozenset[str]) -> ResultRow:
    model = f"{score.model}@{score.revision[:7]}" if score.model in several else score.model
    return ResultRow(model, score.method, score.prompt, score.settings_text)


def _row_order(score: TaskScore) -> tuple[object, ...]:
    """Baselines after models; methods in their usual order."""
    order = (score.model, score.revision, score.prompt, _rank(score.method, _METHODS), score.settings_text)
    return (not score.method, *order)


def _several_revisions(scores: Iterable[TaskScore]) -> frozenset[str]:
    """Models with results of more than one revision."""
    revisions: dict[str, set[str]] = {}
    for score in scores:
        revisions.setdefault(score.model, set()).add(score.revision)
    return frozenset(model for model, found in revisions.items() if len(found) > 1)


def _rank(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)
