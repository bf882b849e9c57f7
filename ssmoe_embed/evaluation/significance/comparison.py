"""Two methods on every task that both were measured on: differences, intervals and p-values, as a report and as CSV.

They are computed from the predictions that were kept of the test examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.tables import Report, Table, csv_text, points, signed
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore, read_json
from ssmoe_embed.evaluation.significance.bootstrap import RESAMPLES, PairedBootstrap, paired_bootstrap

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

CORRECTION = (
    "p-values are two-sided, of each line by itself; adjusted ones (Holm) hold for all the lines together. The intervals "
    "cover which test examples were drawn, not the training of a task's classifier."
)


@dataclass(frozen=True)
class MethodDifference:
    """Two methods on one part of one task; scores in points of 100.

    Attributes:
        first: One result.
        second: The other, which the first one is compared with.
        part: The task's split and subset, empty for the only ones.
        bootstrap: The comparison, whose difference is the first less the second; None where there is none.
        reason: Why there is none.
        adjusted: The p-value adjusted for all lines of the table (Holm).
    """

    first: TaskScore
    second: TaskScore
    part: str
    bootstrap: PairedBootstrap | None
    reason: str = ""
    adjusted: float | None = None

    @property
    def task(self) -> str:
        """The task, with its part."""
        return f"{self.first.task} {self.part}".strip()

    @property
    def setup(self) -> str:
        """How both were run, such as `ssmoe/tiny, clean, prompt none`."""
        prompt = f"prompt {self.first.prompt}" if self.first.prompt else ""
        return ", ".join(filter(None, [self.first.model, self.first.corruption, prompt, self.first.settings_text]))


def compare_methods(
    results: ResultFolder,
    first: str,
    second: str,
    *,
    tasks: Iterable[AbsTask] | None = None,
    model: str | None = None,
    corruption: str | None = None,
    may_differ: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[MethodDifference]:
    """Compare two methods wherever all else is the same: model, revision, prompt, settings, corruption and task.

    A baseline may stand for a method; it is compared with every run on the same texts.

    Args:
        results: What was measured.
        first: A method, or a baseline's name.
        second: Another one.
        tasks: Only these tasks; None for all that both were measured on.
        model: Only this model.
        corruption: Only `clean`, or only this corruption.
        may_differ: Settings that need not be the same, such as those that were chosen for each method on other data.
        resamples: How often examples are drawn.
        seed: Of the drawing.

    Raises:
        ValueError: The two were nowhere measured alike; the message says what was measured.
    """
    wanted = None if tasks is None else {task.metadata.name: task for task in tasks}
    scores = results.scores()
    if wanted is not None:
        scores = _only(scores, "task", list(wanted))
    if corruption is not None:
        scores = _only(scores, "corruption", [corruption])
    _check(scores, first, second, model)
    pairs = [
        (one, other)
        for one in scores
        for other in scores
        if _is(one, first) and _is(other, second) and model in {None, one.model, other.model}
        if _alike(one, other, may_differ)
    ]
    if not pairs:
        raise ValueError(
            f"{first} and {second} were not measured on the same task with the same model, prompt, settings and corruption. "
            "Measure both with one `ssmoe evaluate … --methods` command."
        )
    found: list[MethodDifference] = []
    for name in dict.fromkeys(one.task for one, _ in pairs):
        of_task = [pair for pair in pairs if pair[0].task == name]
        found += _lines(results, of_task, (wanted or {}).get(name), resamples, seed)
    return _adjusted(found)


def report(lines: Sequence[MethodDifference], first: str, second: str) -> Report:
    """The comparison, a table for each setup."""
    heads = ("task", "metric", first, second, f"{first} − {second}", "95 % interval", "p", "p (Holm)", "n")
    tables = [
        Table(heads, tuple(_cells(line) for line in lines if line.setup == setup), title=setup, texts=2)
        for setup in dict.fromkeys(line.setup for line in lines)
    ]
    return Report(f"{first} and {second}", (f"Points of 100. {CORRECTION}", *tables))


def differences_csv(lines: Sequence[MethodDifference], first: str, second: str) -> str:
    """The lines as CSV; scores from 0 to 1 as mteb gives them."""
    heads = (
        "model", "revision", "corruption", "prompt", "task", "metric", "first", "second", "first_score", "second_score",
        "difference", "low", "high", "p_value", "p_holm", "examples", "resamples", "reason",
    )  # fmt: skip
    rows = []
    for line in lines:
        one, found = line.first, line.bootstrap
        numbers: tuple[float | None, ...] = (one.score, line.second.score, *[None] * 5)
        if found is not None:
            interval = (found.difference, found.low, found.high)
            numbers = (found.second, found.first, *interval, found.p_value, line.adjusted or 0.0)
        run = (one.model, one.revision, one.corruption, one.prompt, line.task, one.metric, first, second)
        counts = (None, None) if found is None else (found.examples, found.resamples)
        rows.append((*run, *(None if n is None else f"{n:.6f}" for n in numbers), *counts, line.reason))
    return csv_text(heads, rows)


def p_text(value: float) -> str:
    """A p-value of three digits, or that it is smaller."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cells(line: MethodDifference) -> tuple[str | int | None, ...]:
    """One line; scores and differences in points of 100."""
    found = line.bootstrap
    if found is None:
        scores = (points(100 * score.score) for score in (line.first, line.second))
        return (line.task, line.first.metric, *scores, None, line.reason, None, None, None)
    return (
        line.task,
        line.first.metric,
        points(100 * found.second),
        points(100 * found.first),
        signed(100 * found.difference, 2),
        f"[{signed(100 * found.low, 2)}, {signed(100 * found.high, 2)}]",
        p_text(found.p_value),
        None if line.adjusted is None else p_text(line.adjusted),
        found.examples,
    )


def _only(scores: Sequence[TaskScore], field: str, wanted: Sequence[str]) -> list[TaskScore]:
    """The scores of some tasks or of one corruption.

    Raises:
        ValueError: There are none; the message lists what was measured.
    """
    kept = [score for score in scores if getattr(score, field) in wanted]
    if scores and not kept:
        there = sorted({str(getattr(score, field)) for score in scores})
        raise ValueError(f"There are no results of {field} {', '.join(wanted)} here, only of {', '.join(there)}.")
    return kept


def _check(scores: Sequence[TaskScore], first: str, second: str, model: str | None) -> None:
    """Make sure that both sides were measured at all."""
    there = sorted({score.side for score in scores})
    for name in (first, second):
        if not any(_is(score, name) for score in scores):
            raise ValueError(unknown("methods", name, there or ["(nothing was measured)"]))
    if first == second:
        raise ValueError(f"{first} cannot be compared with itself; name two methods of {', '.join(there)}.")
    models = sorted({score.model for score in scores if score.method})
    if model is not None and model not in models:
        raise ValueError(unknown("model", model, models or ["(no model was measured)"]))


def _is(score: TaskScore, name: str) -> bool:
    return name in (score.side, score.model) if not score.method else score.method == name


def _alike(one: TaskScore, other: TaskScore, may_differ: Sequence[str]) -> bool:
    """Whether two scores differ in nothing but the method; a baseline has neither model nor prompt nor settings."""
    if (one.task, one.corruption) != (other.task, other.corruption):
        return False
    if not one.method or not other.method:
        return True
    settings, others = (
        {name: value for name, value in score.settings.items() if name not in may_differ} for score in (one, other)
    )
    return (one.model, one.revision, one.prompt, settings) == (other.model, other.revision, other.prompt, others)


def _lines(
    results: ResultFolder, pairs: Sequence[tuple[TaskScore, TaskScore]], task: AbsTask | None, resamples: int, seed: int
) -> Iterator[MethodDifference]:
    """The comparisons of results on one task, one for each part of the task that both have; its data are loaded once."""
    from ssmoe_embed.evaluation.tasks.finding import find_tasks

    for one, other in pairs:
        ours, theirs = _parts(one), _parts(other)
        shared = [part for part in ours if part in theirs]
        for part in shared:
            line = MethodDifference(one, other, "" if len(shared) == 1 else "/".join(part), None)
            try:
                if task is None:
                    (task,) = find_tasks([one.task])
                found = paired_bootstrap(
                    task,
                    _predictions(results, other),
                    _predictions(results, one),
                    split=part[0],
                    subset=part[1],
                    expected=(theirs[part], ours[part]),
                    resamples=resamples,
                    seed=seed,
                )
                yield replace(line, bootstrap=found)
            except Exception as error:  # one task's failure does not end the rest
                yield replace(line, reason=(str(error).strip() or type(error).__name__).splitlines()[0])


def _predictions(results: ResultFolder, score: TaskScore) -> Path:
    """The predictions behind a score.

    Raises:
        FileNotFoundError: None were kept.
    """
    path = results.prediction_file(score)
    if not path.is_file():
        raise FileNotFoundError(f"no predictions of {score.side} were kept; evaluate with --predictions --overwrite")
    return path


def _parts(score: TaskScore) -> dict[tuple[str, str], float]:
    """Main score by split and subset."""
    content = read_json(score.path)["scores"]
    return {(split, one["hf_subset"]): float(one["main_score"]) for split, all_ in content.items() for one in all_}


def _adjusted(lines: Sequence[MethodDifference]) -> list[MethodDifference]:
    """The lines with p-values adjusted by Holm's step-down method."""
    tested = [(line.bootstrap.p_value, place) for place, line in enumerate(lines) if line.bootstrap is not None]
    adjusted, running = list(lines), 0.0
    for rank, (p, place) in enumerate(sorted(tested)):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = replace(lines[place], adjusted=running)
    return adjusted
