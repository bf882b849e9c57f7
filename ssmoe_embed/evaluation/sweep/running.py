"""Evaluating a model at every combination of some settings' values.

The base model is loaded once for each `hidden_layer`; other spectral routers are made once and kept under the output, and
every score is an ordinary result of `evaluate`, so a sweep that was interrupted or is widened measures only what is missing.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.mteb.models import ROUTERS, EvaluatedModel, SpectralVariants, model_name
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run, prompt_label, setting_value
from ssmoe_embed.evaluation.paper.embeddings import PublishedAblation, ablations
from ssmoe_embed.evaluation.results.folder import ResultFolder
from ssmoe_embed.evaluation.tasks.corruption import Corruption
from ssmoe_embed.evaluation.tasks.finding import find_tasks
from ssmoe_embed.spectral.settings import SpectralSettings

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

_EMBEDDING = EmbeddingSettings().as_dict()
_SPECTRAL = SpectralSettings().as_dict()
SETTINGS = (*_EMBEDDING, *_SPECTRAL)
"""The settings that can be varied."""


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes.

    Attributes:
        setting: A field of `EmbeddingSettings` or `SpectralSettings`.
        values: Its values, each once, in the order given.

    Raises:
        ValueError: The setting is not known, a value is not allowed, or there is none.
    """

    setting: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise ValueError(unknown("setting", self.setting, SETTINGS))
        if not self.values:
            raise ValueError(f"The axis {self.setting} has no values; give at least one.")
        for value in self.values:
            if self.is_spectral:
                SpectralSettings(**{self.setting: value})
            else:
                method = {"method": "moee"} if self.setting == "routing_signal" else {}
                EmbeddingSettings().changed(**method, **{self.setting: value})
        once = {repr(value): value for value in self.values}  # a top_c of 1 is a count, one of 1.0 a share
        object.__setattr__(self, "values", tuple(once.values()))

    @property
    def is_spectral(self) -> bool:
        """Whether another value needs other spectral routers."""
        return self.setting in _SPECTRAL

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, int | float) for value in self.values)

    @classmethod
    def of_texts(cls, setting: str, texts: Iterable[str | float]) -> Axis:
        """An axis whose values are spelled as on a command line; raises what the class does."""
        values = []
        for text in texts:
            if setting not in SETTINGS or not isinstance(text, str):
                values.append(text)
            elif setting == "top_c" and not text.isdigit():
                values.append(setting_value(setting, text, 0.05))  # a share; a whole number is a count
            else:
                values.append(setting_value(setting, text, (_EMBEDDING | _SPECTRAL)[setting]))
        return cls(setting, tuple(values))

    @classmethod
    def parse(cls, text: str) -> Axis:
        """An axis from `setting=value,value,…`; another form is a ValueError too."""
        setting, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"The axis {text!r} is not of the form setting=value,value, such as alpha=0.5,0.9.")
        return cls.of_texts(setting, values.split(","))


@dataclass(frozen=True)
class Point:
    """One combination of values: each setting with its value, in the order of the axes."""

    values: tuple[tuple[str, Any], ...]

    @property
    def spectral(self) -> dict[str, Any]:
        """The settings that need other spectral routers."""
        return {name: value for name, value in self.values if name in _SPECTRAL}

    @property
    def embedding(self) -> dict[str, Any]:
        """The settings that the model can change once it is loaded, but for `hidden_layer`."""
        return {name: value for name, value in self.values if name not in _SPECTRAL}

    @property
    def label(self) -> str:
        """The combination in words, such as `alpha=0.9, top_c=50`."""
        named = [f"{name}={value_label(name, value)}" for name, value in self.values]
        return ", ".join(named) or "the model's own settings"

    def __getitem__(self, setting: str) -> Any:
        return dict(self.values)[setting]


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values, the last axis fastest.

    Raises:
        ValueError: There is no axis, or a setting has two.
    """
    names = [axis.setting for axis in axes]
    if not names:
        raise ValueError(
            "A sweep varies at least one setting; give for example --alpha 0 0.5 1 or --vary alpha=0,0.5,1."
        )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is varied twice; give all its values at once.")
    combinations = itertools.product(*(axis.values for axis in axes))
    return [Point(tuple(zip(names, values, strict=True))) for values in combinations]


def value_label(setting: str, value: Any) -> str:
    """A value as it is shown; a prompt of one's own by its short name."""
    return prompt_label(value) if setting == "prompt" else str(value)


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


def sweep(
    name: str | Path,
    axes: Sequence[Axis],
    tasks: Iterable[str | AbsTask],
    output: str | Path,
    *,
    corruption: Corruption | None = None,
    settings: Mapping[str, Any] | None = None,
    options: EvaluationOptions | None = None,
    **loading: Any,
) -> SweepResult:
    """Evaluate a model at every combination of the axes' values.

    Args:
        name: Folder, hub id or recipe name.
        axes: What to vary.
        tasks: See `find_tasks`.
        output: The result folder; what is measured there is kept.
        corruption: What is done to the texts.
        settings: Fields of `EmbeddingSettings` for all points.
        options: How to run.
        **loading: For `ssmoe_embed.load`.

    Raises:
        ValueError: A task, setting or value is not known, or a setting is both varied and fixed.
    """
    options = options or EvaluationOptions()
    fixed = dict(settings or {})
    combinations = points(axes)
    both = sorted(fixed.keys() & {axis.setting for axis in axes})
    if both:
        raise ValueError(f"{', '.join(both)} cannot be both varied and fixed.")
    asked = find_tasks(tasks)
    results = ResultFolder(Path(output))
    places: dict[tuple[Point, str], Path] = {}
    failures: list[str] = []
    for layer, group in _grouped(combinations, lambda point: {**fixed, **point.embedding}.get("hidden_layer")):
        model = EvaluatedModel.load(name, hidden_layer=layer, **{"progress": options.progress, **loading})
        _check_axes(axes, [{**fixed, **point.embedding} for point in combinations], model.own)
        variants = SpectralVariants(model, results.path / ROUTERS, progress=options.progress)
        for _, alike in _grouped(group, lambda point: repr(point.spectral)):
            variant = variants.select(alike[0].spectral)
            runs = {point: _run({**fixed, **point.embedding}, corruption) for point in alike}
            report = evaluate([variant], asked, list(runs.values()), output, options=options)
            failures += map(str, report.failures)
            for point, run in runs.items():
                meta, cache = variant.meta(run, batch_size=options.batch_size), results.cache(run.corruption_name)
                for task in asked:
                    places[point, task.metadata.name] = cache.get_task_result_path(task.metadata.name, meta)
        del model, variants, variant
        gc.collect()  # before the next one is loaded
    found = {score.path: score.score for score in results.scores()}
    return SweepResult(
        model=model_name(str(name)),
        axes=tuple(axes),
        corruption=Run(corruption=corruption).corruption_name,
        metrics={task.metadata.name: task.metadata.main_score for task in asked},
        scores={key: 100 * found[path] for key, path in places.items() if path in found},
        failures=tuple(failures),
    )


def _grouped(chosen: Sequence[Point], key: Callable[[Point], Any]) -> list[tuple[Any, list[Point]]]:
    """Points that have the same key, in the order of the first ones."""
    groups: dict[Any, list[Point]] = {}
    for point in chosen:
        groups.setdefault(key(point), []).append(point)
    return list(groups.items())


def _check_axes(axes: Sequence[Axis], values: Sequence[Mapping[str, Any]], own: EmbeddingSettings) -> None:
    """Refuse axes that make no difference to any point."""
    chosen = [_run(one, None).settings(own).changed(alpha=0.5) for one in values]
    spectral = any(settings.needs_spectral_routers for settings in chosen)
    mixing = any(
        settings.forward.mixes or settings.representation.signal is RoutingSignal.WEIGHTS for settings in chosen
    )
    mixed = [axis.setting for axis in axes if axis.setting in {"alpha", "mix"} and not mixing]
    idle = [axis.setting for axis in axes if (axis.is_spectral and not spectral) or axis.setting in mixed]
    if idle:
        methods = ", ".join(dict.fromkeys(str(settings.method) for settings in chosen))
        raise ValueError(
            f"{' and '.join(idle)} makes no difference to method {methods}; sweep over it with --method ssmoe"
            f"{'' if mixed else ' or ev'}."
        )


def _run(values: Mapping[str, Any], corruption: Corruption | None) -> Run:
    """The run with these settings."""
    others = {name: value for name, value in values.items() if name not in ("method", "prompt")}
    return Run(values.get("method"), values.get("prompt"), corruption, others)
