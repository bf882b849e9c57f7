"""One task under one run: whether it is done, and doing it."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.models import ModelMeta
from mteb.results import TaskResult

from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel, MethodEncoder
from ssmoe_embed.evaluation.mteb.passes import SharedPass
from ssmoe_embed.evaluation.mteb.runs import OF_THE_TASK
from ssmoe_embed.evaluation.results.folder import ResultFolder, publish, read_json
from ssmoe_embed.evaluation.tasks.corruption import CLEAN, Corruption
from ssmoe_embed.evaluation.vision.encoder import ImageCorruption


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one model that share a forward pass and the texts; those of a baseline share nothing.

    Attributes:
        model: The model; None for a baseline.
        variants: The settings of all its runs that take this forward pass.
    """

    model: EvaluatedModel | None = None
    variants: tuple[EmbeddingSettings, ...] = ()

    def open(self, wanted: Sequence[EmbeddingSettings], **limits: Any) -> SharedPass | None:
        """The forward pass for the settings that are wanted now, its calibration fitted where that is missing.

        Args:
            wanted: Some of the variants.
            **limits: See `SharedPass`; `batch_size` and `progress` are for the calibration.
        """
        if self.model is None:
            return None
        fitting = {name: limits.pop(name) for name in ("batch_size", "progress")}
        model = self.model.model
        model[0].fit_calibration(variants=self.variants, **fitting)
        return SharedPass(model, wanted, **limits)


@dataclass(frozen=True, eq=False)
class Job:
    """One task under one run.

    Attributes:
        task: The task.
        meta: The record of the model and run.
        corruption: What is done to the texts.
        group: What it shares with other jobs.
        settings: The run's settings; None for a baseline.
        baseline: The encoder, if it is one that shares nothing.
        predictions: Keep the predictions.
    """

    task: AbsTask
    meta: ModelMeta
    corruption: Corruption | ImageCorruption | None
    group: Group
    settings: EmbeddingSettings | None = None
    baseline: Any = None
    predictions: bool = False

    @property
    def root(self) -> str:
        """Name of the folder that its results are under."""
        return CLEAN if self.corruption is None else self.corruption.name

    @property
    def label(self) -> str:
        """The job in a few words."""
        return f"{self.task.metadata.name}, {self.meta.model_name_with_experiment}"

    def encoder(self, shared: SharedPass | None) -> Any:
        """What mteb evaluates."""
        if shared is None or self.settings is None or self.group.model is None:
            return self.baseline
        assert not isinstance(self.corruption, ImageCorruption)
        return MethodEncoder(shared, self.group.model.model, self.settings, self.meta, self.corruption)


def instructed(settings: EmbeddingSettings, task: AbsTask) -> EmbeddingSettings:
    """Settings with the task's own instruction, where that is asked for."""
    if settings.instruction != OF_THE_TASK:
        return settings
    own = task.metadata.prompt or task.abstask_prompt
    return settings.changed(instruction=own if isinstance(own, str) else str(own.get("query", "")))


class StaleResultError(ValueError):
    """Results that were measured in another way than they would be now."""


def check_comparable(folder: ResultFolder, tasks: Iterable[AbsTask]) -> None:
    """Make sure that everything in a folder can stand in one table with new results.

    Raises:
        StaleResultError: A result is of another mteb version, or of another revision of one of the tasks' data.
        ValueError: A result file is broken.
    """
    revisions = {task.metadata.name: task.metadata.revision for task in tasks}
    stale = []
    for _, path in folder.files():
        result, name = read_json(path), path.relative_to(folder.path)
        version, revision = result.get("mteb_version"), result.get("dataset_revision")
        wanted = revisions.get(str(result.get("task_name")), revision)
        if version != mteb.__version__:
            stale.append(f"{name} (mteb {version}, now {mteb.__version__})")
        elif revision != wanted:
            stale.append(f"{name} (data revision {revision}, now {wanted})")
    if stale:
        shown = "; ".join(stale[:3]) + (f"; and {len(stale) - 3} more" if len(stale) > 3 else "")
        raise StaleResultError(
            f"{folder.path} holds results that would not be comparable with new ones: {shown}. Choose another --output, "
            "install that version of mteb, or pass --overwrite, which measures what is asked for again."
        )


def unfinished(folder: ResultFolder, jobs: Iterable[Job]) -> list[Job]:
    """The jobs that have no complete result yet.

    Raises:
        ValueError: A result file is broken.
    """
    waiting = []
    for job in jobs:
        path = folder.cache(job.root).get_task_result_path(job.task.metadata.name, job.meta)
        if not path.is_file():
            waiting.append(job)
            continue
        try:
            result = TaskResult.from_disk(path)
        except Exception as error:  # whatever a broken file makes mteb raise
            raise ValueError(
                f"{path} is broken ({type(error).__name__}); delete it, and the next run measures it again."
            ) from error
        if result.get_missing_evaluations(job.task):
            waiting.append(job)
    return waiting


def do(
    folder: ResultFolder, job: Job, shared: SharedPass | None, *, batch_size: int, overwrite: bool, progress: bool
) -> None:
    """Do one job with mteb and keep its result; what mteb raises is passed on."""
    cache = folder.cache(job.root)
    _seed(job.task)
    encoder = job.encoder(shared)
    if hasattr(encoder, "prepare"):
        encoder.prepare(job.task)
    options: dict[str, Any] = {"overwrite_strategy": "always" if overwrite else "only-missing"}
    if isinstance(job.task, AbsTaskAggregate):
        options["overwrite_strategy"] = "only-cache"  # its parts are jobs of their own
    kept = folder.predictions(job.root, job.meta) / job.task.prediction_file_name
    work = Path(tempfile.mkdtemp(prefix="ssmoe-"))
    try:
        if job.predictions:
            if kept.is_file() and not overwrite:
                shutil.copyfile(kept, work / kept.name)  # those of subsets that are done
            options["prediction_folder"] = work
            cache.before_saving = lambda: publish(work / kept.name, kept)
        mteb.evaluate(
            encoder,
            job.task,
            cache=cache,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": progress},
            show_progress_bar=False,
            co2_tracker=False,
            **options,
        )
        tally = getattr(encoder, "tally", None)
        if tally is not None and tally.texts:
            folder.record_rate(job.root, job.task.metadata.name, tally)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _seed(task: AbsTask) -> None:
    """Let a task draw the same samples whatever was evaluated on it before: mteb seeds it only when it is made."""
    random.seed(task.seed)
    np.random.seed(task.seed)  # what mteb and scikit-learn draw from
    torch.manual_seed(task.seed)
    task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)
