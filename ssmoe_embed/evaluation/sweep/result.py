"""What a sweep measured: a score for each point and task, their means, and what choosing by them is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from ssmoe_embed.evaluation.paper.embeddings import PublishedAblation, ablations
from ssmoe_embed.evaluation.sweep.axes import Axis, Point, points

MEAN = "mean"
TEST_SET_WARNING = (
    "These are scores on the tasks' test data. To choose settings by them is to tune on the test set: do not report the "
    "best point's score on the same tasks as the method's. Choose on some tasks and report on others, as the table of "
    "settings chosen on the other tasks does."
)


@dataclass(frozen=True)
class HeldOut:
    """What a task gives with the settings that are best on the other tasks.

    Attributes:
        task: The task that had no say in the choice.
        chosen: The point with the best mean over the others.
        score: Its score on the task, in points of 100.
        best: The best score of any point on the task: what choosing on the task itself would claim.
    """

    task: str
    chosen: Point
    score: float
    best: float


@dataclass(frozen=True)
class SweepResult:
    """The scores of a sweep.

    Attributes:
        model: The model's name.
        axes: What was varied.
        corruption: `clean`, or the corruption's name.
        metrics: Metric by task, in the order of the tasks.
        scores: Score by point and task, in points of 100; what was not measured is not there.
        failures: What could not be measured, and why.
    """

    model: str
    axes: tuple[Axis, ...]
    corruption: str
    metrics: Mapping[str, str]
    scores: Mapping[tuple[Point, str], float]
    failures: tuple[str, ...] = ()

    @property
    def points(self) -> list[Point]:
        """Every combination, in order."""
        return points(self.axes)

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order."""
        return list(self.metrics)

    @property
    def missing(self) -> list[tuple[Point, str]]:
        """What was not measured."""
        return [(point, task) for point in self.points for task in self.tasks if (point, task) not in self.scores]

    def score(self, point: Point, task: str) -> float | None:
        """A score, or with the task `MEAN` the mean over all tasks; None where something was not measured."""
        values = [self.scores.get((point, one)) for one in (self.tasks if task == MEAN else [task])]
        present = [value for value in values if value is not None]
        return fmean(present) if present and len(present) == len(values) else None

    def held_out(self) -> list[HeldOut]:
        """For each of two or more tasks, the score with the settings that are best on the others; ties go to the first."""
        if len(self.tasks) < 2 or self.missing:
            return []
        found = []
        for task in self.tasks:
            others = [one for one in self.tasks if one != task]
            means = {point: fmean(self.scores[point, one] for one in others) for point in self.points}
            chosen = max(self.points, key=means.__getitem__)
            best = max(self.scores[point, task] for point in self.points)
            found.append(HeldOut(task, chosen, self.scores[chosen, task], best))
        return found

    def paper(self) -> list[PublishedAblation]:
        """The paper's table 6, as far as its tasks and settings are among those of the sweep."""
        settings = {axis.setting for axis in self.axes}
        return [number for number in ablations() if number.task in self.metrics and number.setting in settings]
