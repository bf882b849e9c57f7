"""Measured scores compared with the paper's: by task, by category and overall.

Like is compared with like: where only some tasks of a category were measured, their mean is compared with the paper's mean
of the same tasks, and with nothing where the paper prints the category's mean only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import NamedTuple

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.tables import MISSING, Report, Table, csv_text, points, signed
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.evaluation.paper.embeddings import (
    DATASETS,
    METHODS,
    METRICS,
    MODELS,
    OVERALL,
    Condition,
    PaperModel,
    datasets,
    misprints,
    paper_model,
    paper_prompt,
    published,
)
from ssmoe_embed.evaluation.results.folder import TaskScore
from ssmoe_embed.evaluation.tasks.corruption import CLEAN


class Setup(NamedTuple):
    """How a model was run, all but the method.

    Attributes:
        corruption: `clean`, or the corruption's name.
        prompt: The template.
        settings: What else differs from the model's own settings, as `alpha=0.9, mix=logits`.
    """

    corruption: str
    prompt: str
    settings: str


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the comparison; scores in points of 100.

    Attributes:
        setup: How the model was run.
        method: The representation.
        category: The kind of task, or `OVERALL`.
        task: mteb's name of the dataset; None for a mean.
        measured: Our score; None where nothing was measured.
        published: The paper's; None where it has none for exactly this.
        covered: How many tasks were measured.
        total: How many tasks the paper has there.
    """

    setup: Setup
    method: Method
    category: str
    task: str | None
    measured: float | None
    published: float | None
    covered: int
    total: int

    @property
    def difference(self) -> float | None:
        """Measured less published, if there are both."""
        return None if self.measured is None or self.published is None else self.measured - self.published


@dataclass(frozen=True)
class Comparison:
    """One measured model, at one revision, compared with one of the paper's.

    Attributes:
        rows: The lines: for each setup and method the tasks, the categories' means and the overall one.
        notes: What a reader should know.
    """

    model: str
    revision: str
    paper: PaperModel
    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]

    @property
    def setups(self) -> tuple[Setup, ...]:
        """The setups in order, each once."""
        return tuple(dict.fromkeys(row.setup for row in self.rows))


def compare_with_paper(
    scores: Iterable[TaskScore],
    *,
    model: str | None = None,
    stands_for: str | None = None,
    methods: Sequence[str] | None = None,
    corrupt: str | None = None,
) -> list[Comparison]:
    """Compare measured scores with the paper's, one comparison for each model and revision that the paper has.

    Args:
        scores: What was measured.
        model: Only this measured model.
        stands_for: Which of the paper's models the measured one is, where its name does not tell; `model` must be given
            if several were measured.
        methods: Only these; by default the paper's five, and `ssmoe-hidden` where it was measured.
        corrupt: The one corruption to compare with the paper's; by default every measured one, as the paper names none.

    Raises:
        ValueError: Nothing was measured that could be compared; the message says what there is.
    """
    found = list(scores)
    measured = {str(score.method) for score in found}
    own = [method for method in Method if method in METHODS or str(method) in measured]
    chosen = [Method.parse(method, "method") for method in methods or own]
    pairs = _pairs(sorted({(score.model, score.revision) for score in found}), model, stands_for)
    corruptions = sorted({score.corruption for score in found} - {CLEAN})
    if corrupt is not None and corrupt not in corruptions:
        raise ValueError(unknown("corrupt", corrupt, corruptions or ["(no corruption was measured)"]))
    kept = [score for score in found if score.corruption in (CLEAN, corrupt) or corrupt is None]
    return [
        _comparison([score for score in kept if (score.model, score.revision) == pair], pair, paper, chosen)
        for pair, paper in pairs
    ]


def _pairs(
    measured: Sequence[tuple[str, str]], model: str | None, stands_for: str | None
) -> list[tuple[tuple[str, str], PaperModel]]:
    """The measured models and revisions to compare, each with the paper's model."""
    names = sorted({name for name, _ in measured})
    if model is not None and model not in names:
        raise ValueError(unknown("model", model, names or ["(nothing was measured)"]))
    wanted = [(name, revision) for name, revision in measured if model in (None, name)]
    if stands_for is not None and len({name for name, _ in wanted}) != 1:
        raise ValueError(f"Several models were measured ({', '.join(names)}); name the one that is {stands_for!r}.")
    said = stands_for if stands_for is not None else model
    if said is not None:
        return [(pair, paper_model(said)) for pair in wanted]
    pairs = []
    for pair in wanted:
        with suppress(ValueError):  # of models that the paper does not have
            pairs.append((pair, paper_model(pair[0])))
    if not pairs:
        raise ValueError(
            f"The paper has no scores of what was measured here ({', '.join(names) or 'nothing'}); it has "
            f"{', '.join(f'{known.name} ({known.recipe})' for known in MODELS)}. If a measured model is one of these "
            "under another name, say which with --model and --as."
        )
    return pairs


def _comparison(
    scores: Sequence[TaskScore], pair: tuple[str, str], paper: PaperModel, methods: Sequence[Method]
) -> Comparison:
    """The comparison of one model at one revision."""
    metrics = {dataset.task: dataset.metric for dataset in DATASETS}
    other = sorted({f"{s.task} ({s.metric})" for s in scores if s.metric != metrics.get(s.task, s.metric)})
    usable = [s for s in scores if s.metric == metrics.get(s.task) and s.method in methods]
    measured: dict[Setup, dict[str, dict[str, float]]] = {}
    for score in usable:
        of_setup = measured.setdefault(Setup(score.corruption, score.prompt, score.settings_text), {})
        of_setup.setdefault(score.method, {})[score.task] = 100 * score.score
    rows: list[ComparisonRow] = []
    for setup in sorted(measured, key=lambda setup: (setup.corruption != CLEAN, setup)):
        for method in methods:
            rows += _rows(setup, method, measured[setup].get(method, {}), paper)
    notes = [*_notes(usable, other), *misprints(paper)]
    if not rows:
        notes.insert(0, f"None of the paper's {len(DATASETS)} tasks was measured with {', '.join(methods)}.")
    return Comparison(*pair, paper, tuple(rows), tuple(notes))


def _notes(scores: Sequence[TaskScore], other: Sequence[str]) -> Iterator[str]:
    if other:
        yield f"Left out, since the paper reports another metric: {', '.join(other)}."
    versions = sorted({score.mteb_version for score in scores})
    if len(versions) > 1:
        yield f"Measured with several versions of mteb: {', '.join(map(str, versions))}."
    if any("instruction" not in score.settings for score in scores):
        yield (
            "Without a task instruction before the texts. The paper's release puts E5's there unless it is told not to, and "
            "the paper does not say which was measured: --settings instruction=task puts them where it does."
        )
    if any(score.method == Method.SSMOE_HIDDEN for score in scores):
        yield "ssmoe-hidden is compared with the paper's SSMoE too, of which its release measures just this part."
    if any(score.corruption != CLEAN for score in scores):
        yield "The paper does not tell how it corrupts texts, or how many; no corruption here is known to be the same."


def _rows(setup: Setup, method: Method, measured: Mapping[str, float], paper: PaperModel) -> Iterator[ComparisonRow]:
    """The lines of one method under one setup."""
    published = Method.SSMOE if method is Method.SSMOE_HIDDEN else method
    condition = Condition.CLEAN if setup.corruption == CLEAN else Condition.CORRUPT
    stated = _stated(paper.name, published, paper_prompt(setup.prompt), condition)
    means = []
    for category in METRICS:
        rows = []
        for task in (dataset.task for dataset in datasets(category)):
            scores = measured.get(task), stated.get((category, task))
            rows.append(ComparisonRow(setup, method, category, task, *scores, covered=int(task in measured), total=1))
        yield from rows
        means.append(_mean(rows, stated.get((category, None))))
        yield means[-1]
    yield replace(_mean(means, stated.get((OVERALL, None))), category=OVERALL)


def _mean(rows: Sequence[ComparisonRow], stated: float | None) -> ComparisonRow:
    """The mean of some lines; its published value is the `stated` one only if everything was measured."""
    covered, total = sum(row.covered for row in rows), sum(row.total for row in rows)
    measured = [row.measured for row in rows if row.measured is not None]
    compared = [row.published for row in rows if row.measured is not None or not measured]  # the paper's in any case
    published_mean = fmean(value for value in compared if value is not None) if None not in compared else None
    if stated is not None and (covered == total or not measured):
        published_mean = stated
    mean = fmean(measured) if measured else None
    return replace(rows[0], task=None, measured=mean, published=published_mean, covered=covered, total=total)


@cache
def _stated(model: str, method: Method, prompt: str, condition: Condition) -> dict[tuple[str, str | None], float]:
    """The paper's numbers of one model, method, prompt and condition, by category and task."""
    wanted = (model, method, prompt, condition)
    return {
        (number.category, number.task): number.score
        for number in published()
        if (number.model, number.method, number.prompt, number.condition) == wanted
    }


_HEADS = (
    "model", "revision", "paper_model", "corruption", "prompt", "settings", "method", "category", "task",
    "measured", "published", "difference", "covered", "total",
)  # fmt: skip


def report(comparison: Comparison) -> Report:
    """The comparison, a table for each setup."""
    title = f"{comparison.model} (revision {comparison.revision}) compared with the paper's {comparison.paper.name}"
    legend = f"Cells: measured (published, difference), in points of 100; {MISSING} was not measured."
    tables = [_table(setup, [row for row in comparison.rows if row.setup == setup]) for setup in comparison.setups]
    return Report(title, (legend, *tables, *(f"Note: {note}" for note in comparison.notes)))


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as CSV, one row of a comparison a line; what is not there is empty."""
    rows: list[tuple[str | int | None, ...]] = []
    for one in comparisons:
        for row in one.rows:
            scores = (
                None if value is None else f"{value:.4f}" for value in (row.measured, row.published, row.difference)
            )
            run = (one.model, one.revision, one.paper.name, *row.setup)
            rows.append((*run, row.method, row.category, row.task, *scores, row.covered, row.total))
    return csv_text(_HEADS, rows)


def cell(row: ComparisonRow) -> str:
    """One line's scores in one table cell, such as `35.9 (37.4, −1.5)`."""
    if row.published is None:
        return points(row.measured)
    change = "" if row.difference is None else f", {signed(row.difference)}"
    return f"{points(row.measured)} ({row.published:.1f}{change})"


def _table(setup: Setup, found: Sequence[ComparisonRow]) -> Table:
    """One setup: a row for each task and mean, a column for each method."""
    lines: dict[tuple[str, str | None], list[ComparisonRow]] = {}
    for row in found:
        lines.setdefault((row.category, row.task), []).append(row)
    rows, bold = [], set()
    for (category, task), of_methods in lines.items():
        mean = category if category == OVERALL else f"{category} mean"
        rows.append((task or mean, *map(cell, of_methods)))
        if task is None:
            bold |= {(len(rows) - 1, i) for i in range(len(rows[-1]))}
    overall = lines[OVERALL, None]
    counts = ", ".join(f"{row.method} {row.covered}" for row in overall)
    texts = CLEAN if setup.corruption == CLEAN else f"corrupt: {setup.corruption}"
    return Table(
        ("task", *(str(row.method) for row in overall)),
        tuple(rows),
        title=", ".join(filter(None, [texts, f"prompt {setup.prompt}", setup.settings])),
        bold=frozenset(bold),
        notes=(f"Tasks measured of {overall[0].total}: {counts}.",),
    )
