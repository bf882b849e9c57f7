"""Evaluating models on mteb tasks: many methods at the price of few forward passes, and every result kept at once.

The order is model → task → corruption → forward pass → methods. What several methods read of a text is kept while their
group of jobs runs. A result is on disk before the next job starts, so an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import gc
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.models import ModelMeta
from tqdm.auto import tqdm

from ssmoe_embed.embedding.settings import PRESET_SPECTRAL, EmbeddingSettings, ForwardSettings
from ssmoe_embed.evaluation.baselines import does, load_baseline
from ssmoe_embed.evaluation.baselines.of_model import MODEL_BASELINES, model_baselines
from ssmoe_embed.evaluation.mteb.jobs import Group, Job, check_comparable, do, instructed, unfinished
from ssmoe_embed.evaluation.mteb.models import ROUTERS, EvaluatedModel, SpectralVariants, corrupted_baseline, model_name
from ssmoe_embed.evaluation.mteb.passes import GIB
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore
from ssmoe_embed.evaluation.tasks.corruption import Corruption
from ssmoe_embed.evaluation.tasks.finding import expanded, find_tasks
from ssmoe_embed.evaluation.vision.encoder import VisionEncoder, routed_view
from ssmoe_embed.evaluation.vision.tasks import OFFLINE_NAMES
from ssmoe_embed.spectral.settings import SpectralSettings
from ssmoe_embed.vision.module import is_vision_model


@dataclass(frozen=True)
class Failure:
    """Something that could not be evaluated.

    Attributes:
        what: The task, and the model and run where it is one run's failure.
        reason: Why, and what to do where that is known.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass
class EvaluationReport:
    """What came of an evaluation.

    Attributes:
        folder: Where the results are.
        done: Jobs measured now.
        kept: Jobs that were measured before.
        failures: What could not be evaluated.
        texts_read: Texts that went through a model, shared ones counted once.
    """

    folder: ResultFolder
    done: int = 0
    kept: int = 0
    failures: list[Failure] = field(default_factory=list)
    texts_read: int = 0

    def scores(self) -> list[TaskScore]:
        """Every score in the folder, those of earlier evaluations too."""
        return self.folder.scores()


@dataclass(frozen=True)
class EvaluationOptions:
    """How evaluations run.

    Attributes:
        batch_size: Texts per forward pass.
        overwrite: Measure again what is there.
        predictions: Keep mteb's predictions; None for those of the offline tasks only.
        memory: Bytes of features kept in memory for the methods that share a forward pass.
        scratch: Bytes kept on disk beyond that, under the result folder.
        progress: Show progress bars.
    """

    batch_size: int = 32
    overwrite: bool = False
    predictions: bool | None = None
    memory: int = 2 * GIB
    scratch: int = 16 * GIB
    progress: bool = True


logger = logging.getLogger(__name__)


def evaluate(
    models: Sequence[str | Path | EvaluatedModel],
    tasks: Sequence[str | AbsTask],
    runs: Sequence[Run] = (Run(),),
    output: str | Path = "results",
    *,
    baselines: Sequence[Any] = (),
    options: EvaluationOptions | None = None,
    after_task: Callable[[EvaluationReport], None] | None = None,
    **loading: Any,
) -> EvaluationReport:
    """Evaluate models and baselines on tasks.

    Args:
        models: Folders, hub ids, recipe names, or models that are loaded already.
        tasks: See `find_tasks`.
        runs: How each model is evaluated; see `grid`.
        output: The result folder; results that are there are kept, and what is complete is not measured again.
        baselines: Names (see `ssmoe_embed.evaluation.baselines`) or mteb encoders, under the same corruptions; those of
            `MODEL_BASELINES` are measured of each model.
        options: How to run.
        after_task: Called when a task is done with all runs of a model.
        **loading: For `ssmoe_embed.load`: `device`, `model_kwargs`, ….

    Raises:
        ValueError: A task, method, prompt or setting is not known, or results in the folder are not comparable with new
            ones.
        NotADirectoryError: `output` is a file.
    """
    options = options or EvaluationOptions()
    settings = sorted(
        loading.keys() & {*EmbeddingSettings.__dataclass_fields__, *SpectralSettings.__dataclass_fields__}
    )
    if settings:  # they would not be part of a result's name
        raise ValueError(
            f"{', '.join(settings)}: settings belong to runs (Run(overrides=…)); spectral ones are fixed by a model."
        )
    for run in runs:
        run.settings(EmbeddingSettings())  # what no model has is refused before anything is loaded
    asked = find_tasks(tasks)
    folder = ResultFolder(Path(output))
    if not options.overwrite:
        check_comparable(folder, expanded(asked))
    parts = [task for task in expanded(asked) if task not in asked]
    folder.record(asked, parts)
    report = EvaluationReport(folder)
    of_models = [one for one in baselines if isinstance(one, str) and one in MODEL_BASELINES]
    if of_models and not models:
        raise ValueError(
            f"{', '.join(of_models)}: what is read of a model cannot be measured without one; name a MODEL."
        )
    evaluation = _Evaluation(report, expanded(asked), options, after_task, of_models)
    for baseline in baselines:
        if baseline not in of_models:
            evaluation.baseline(baseline, list(dict.fromkeys(run.on_texts for run in runs)))
    for model in models:
        for layer in dict.fromkeys(run.overrides.get("hidden_layer") for run in runs):  # it is loaded up to that one
            alike = [run for run in runs if run.overrides.get("hidden_layer") == layer]
            evaluation.model(model, layer, alike, loading)
    return report


class _Evaluation:
    """The state of one call of `evaluate`."""

    def __init__(
        self,
        report: EvaluationReport,
        tasks: list[AbsTask],
        options: EvaluationOptions,
        after_task: Callable[[EvaluationReport], None] | None,
        of_models: Sequence[str],
    ) -> None:
        self.report, self.tasks, self.options, self.after_task = report, tasks, options, after_task
        self.of_models = of_models

    def model(
        self, named: str | Path | EvaluatedModel, layer: int | None, runs: Sequence[Run], loading: dict[str, Any]
    ) -> None:
        """Evaluate one model on all tasks."""
        if isinstance(named, EvaluatedModel):
            self._loaded(named, runs)
            return
        if is_vision_model(named):
            self._vision(str(named), runs, loading)
            return
        loaded = None
        with self._failing(model_name(str(named))):
            loaded = EvaluatedModel.load(named, hidden_layer=layer, **{"progress": self.options.progress, **loading})
        if loaded is not None:
            self._loaded(loaded, runs)
        del loaded
        gc.collect()  # before the next model is loaded

    def _vision(self, named: str, runs: Sequence[Run], loading: dict[str, Any]) -> None:
        """Evaluate a model of images and texts on all tasks."""
        from ssmoe_embed.hub.models import load

        jobs: list[Job] = []
        with self._failing(named):
            model = load(named, progress=self.options.progress, **loading)
            for run in runs:
                made = VisionEncoder(routed_view(model, run.method, run.overrides), named, run.noise)
                jobs += [self._alone(task, made, run.noise) for task in self.tasks]
        self._run(sorted(jobs, key=lambda job: self.tasks.index(job.task)))

    def baseline(self, named: Any, corruptions: Sequence[Corruption | None]) -> None:
        """Evaluate one baseline on all tasks."""
        self._run(self._beside(load_baseline(named) if isinstance(named, str) else named, corruptions))

    def _beside(self, encoder: Any, corruptions: Sequence[Corruption | None]) -> list[Job]:
        """Every task that a baseline can do, under every corruption."""
        chosen = [(one, corrupted_baseline(encoder, one)) for one in corruptions]
        able = [task for task in self.tasks if does(encoder, task.metadata.type)]
        return [self._alone(task, made, one) for task in able for one, made in chosen]

    def _alone(self, task: AbsTask, made: Any, corruption: Any) -> Job:
        return Job(task, made.mteb_model_meta, corruption, Group(), None, made, self._keeps_predictions(task))

    def _loaded(self, model: EvaluatedModel, runs: Sequence[Run]) -> None:
        """Evaluate a loaded model; a preset such as `paper` may need spectral routers of its own."""
        variants = SpectralVariants(model, self.report.folder.path / ROUTERS, progress=self.options.progress)
        jobs = []
        ordered = sorted(runs, key=lambda run: run.method in PRESET_SPECTRAL)
        for spectral, alike in itertools.groupby(ordered, lambda run: PRESET_SPECTRAL.get(str(run.method), {})):
            with self._failing(f"{model.name}, {spectral}"):
                jobs += self._jobs(variants.select(spectral), list(alike))
        for name in self.of_models:
            with self._failing(f"{model.name}, {name}"):
                for encoder, corruptions in model_baselines(model, name, runs):
                    jobs += self._beside(encoder, corruptions)
        self._run(sorted(jobs, key=lambda job: self.tasks.index(job.task)))

    def _jobs(self, model: EvaluatedModel, runs: Sequence[Run]) -> list[Job]:
        """Every task under every run of a model."""
        metas: dict[tuple[str, str | None], tuple[Run, ModelMeta]] = {}
        for run in runs:
            with self._failing(f"{model.name}, {run}"):
                meta = model.meta(run, batch_size=self.options.batch_size)
                metas.setdefault((run.corruption_name, meta.experiment_name), (run, meta))
        planned = [
            (task, run, meta, instructed(model.settings(run), task))
            for task in self.tasks
            for run, meta in metas.values()
        ]
        variants: defaultdict[ForwardSettings, dict[EmbeddingSettings, None]] = defaultdict(dict)  # each once, in order
        for *_, settings in planned:
            variants[settings.forward][settings] = None
        groups: dict[tuple[str, ForwardSettings], Group] = {}
        jobs = []
        for task, run, meta, settings in planned:
            sharing = Group(model, tuple(variants[settings.forward]))
            group = groups.setdefault((run.corruption_name, settings.forward), sharing)
            keep = self._keeps_predictions(task)
            jobs.append(Job(task, meta, run.on_texts, group, settings, predictions=keep))
        return jobs

    def _run(self, jobs: list[Job]) -> None:
        """Do the jobs that are not done, task by task."""
        waiting = jobs if self.options.overwrite else unfinished(self.report.folder, jobs)
        self.report.kept += len(jobs) - len(waiting)
        with tqdm(total=len(waiting), desc="Evaluating", unit="run", disable=not self.options.progress) as bar:
            for _, found in itertools.groupby(waiting, key=lambda job: id(job.task)):
                its_jobs = list(found)
                self._task(its_jobs[0].task, its_jobs, bar)
                if self.after_task is not None:
                    self.after_task(self.report)

    def _task(self, task: AbsTask, jobs: list[Job], bar: Any) -> None:
        """Do the jobs of one task, with its data loaded once."""
        averages = isinstance(task, AbsTaskAggregate)
        loaded = task.data_loaded
        try:
            if not averages and not loaded:
                with self._failing(f"{task.metadata.name}, {_counted(jobs)}", _NO_DATA):
                    task.load_data()
            if not averages and not task.data_loaded:
                bar.update(len(jobs))
                return
            for group in dict.fromkeys(job.group for job in jobs):
                self._group(group, [job for job in jobs if job.group is group], bar)
        finally:
            if task.data_loaded and not loaded:
                task.unload_data()

    def _group(self, group: Group, jobs: list[Job], bar: Any) -> None:
        """Do jobs of one task that share a forward pass; what they share is dropped afterwards."""
        options, folder = self.options, self.report.folder
        running: dict[str, Any] = {"batch_size": options.batch_size, "progress": options.progress}
        limits: dict[str, Any] = {"memory": options.memory, "scratch": options.scratch, "folder": folder.path}
        shared = None
        with self._failing(f"{jobs[0].task.metadata.name}, {_counted(jobs)}"):
            shared = group.open([job.settings for job in jobs if job.settings is not None], **limits, **running)
        for job in jobs if shared is not None or group.model is None else ():
            bar.set_postfix_str(job.label)
            with self._failing(job.label):
                do(folder, job, shared, overwrite=options.overwrite, **running)
                self.report.done += 1
            bar.update()
        self.report.texts_read += shared.texts_read if shared is not None else 0

    def _keeps_predictions(self, task: AbsTask) -> bool:
        from ssmoe_embed.evaluation.tasks.offline import offline_task

        if isinstance(task, AbsTaskAggregate):
            return False
        ships = offline_task(task.metadata.name) is not None or task.metadata.name in OFFLINE_NAMES
        return ships if self.options.predictions is None else self.options.predictions

    @contextmanager
    def _failing(self, what: str, advice: str = "") -> Iterator[None]:
        """Note an error instead of ending the rest."""
        try:
            yield
        except Exception as error:
            logger.debug("%s failed", what, exc_info=True)
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.report.failures.append(Failure(what, f"{advice}{type(error).__name__}: {first}"))


def _counted(jobs: Sequence[Job]) -> str:
    """Of which model jobs are, and how many: `ssmoe/tiny (2 runs)`."""
    return f"{jobs[0].meta.name} ({len(jobs)} {'run' if len(jobs) == 1 else 'runs'})"


_NO_DATA = (
    "its data cannot be fetched; check the network and that HF_HUB_OFFLINE is not set, then run the same command again, "
    "which keeps what is done. "
)
