"""The folder that holds the results of evaluations: one mteb result cache, with whole files only, for each corruption."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb import ResultCache, get_task
from mteb.models import ModelMeta
from mteb.results import TaskResult

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.evaluation.tasks.local_data import is_local

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from ssmoe_embed.evaluation.tasks.corruption import Tally


META = "model_meta.json"
_KEPT = (META, "run_settings.jsonl")


class AtomicResultCache(ResultCache):
    """Writes every file beside its place and renames it, the result itself last."""

    before_saving: Callable[[], None] | None = None
    """Called before a result is written: whatever must be on disk when the result is."""

    def save_to_cache(
        self, task_result: TaskResult, model_name: str | ModelMeta, model_revision: str | None = None, **kwargs: Any
    ) -> None:
        """See `mteb.ResultCache.save_to_cache`."""
        if self.before_saving is not None:
            self.before_saving()
        target = self.get_task_result_path(task_result.task_name, model_name, model_revision)
        with tempfile.TemporaryDirectory() as work:
            scratch = ResultCache(work)
            written = scratch.get_task_result_path(task_result.task_name, model_name, model_revision)
            written.parent.mkdir(parents=True)
            for name in _KEPT:
                if (target.parent / name).is_file():
                    shutil.copyfile(target.parent / name, written.parent / name)
            scratch.save_to_cache(task_result, model_name, model_revision, **kwargs)
            for name in (*_KEPT, target.name):
                publish(written.parent / name, target.parent / name)


def publish(source: Path, target: Path) -> None:
    """Copy a file, if it is there, to its place, where it appears whole or not at all."""
    if source.is_file():
        with atomic_file(target) as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)


_RESULTS = "results"
_PREDICTIONS = "predictions"
_EXPERIMENTS = "experiments"
_TASKS = "tasks"
_RATES = "rates"


@dataclass(frozen=True)
class TaskScore:
    """One model's score on one task.

    Attributes:
        model: The model's name.
        revision: Its revision.
        method: Its representation; empty for a baseline.
        prompt: Its template; empty for a baseline.
        settings: What else differs from the model's own settings, and how it was loaded where that matters.
        corruption: `clean`, or the corruption's name.
        task: The task's name.
        task_type: The task's type.
        metric: The task's main metric.
        score: Mean of the metric over the task's splits and subsets, 0 to 1 as mteb gives it.
        seconds: mteb's time; of methods that share a forward pass, the first one bears it.
        mteb_version: The version that measured it.
        path: The result file.
        local_data: `local-` and a hash where the task's data came from a folder, else empty.
    """

    model: str
    revision: str
    method: str
    prompt: str
    settings: dict[str, Any]
    corruption: str
    task: str
    task_type: str
    metric: str
    score: float
    seconds: float
    mteb_version: str
    path: Path = field(compare=False, repr=False)
    local_data: str = ""

    @property
    def is_default(self) -> bool:
        """Whether it is the model as it is, on clean texts: what a leaderboard takes."""
        return _EXPERIMENTS not in self.path.parts[-3:-1]

    @property
    def side(self) -> str:
        """What a comparison calls it by: its method, or the baseline."""
        return self.method or self.model.rpartition("/")[2]

    @property
    def settings_text(self) -> str:
        """The settings in one line."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, without the path."""
        values = asdict(self)
        del values["path"]
        return values


@dataclass(frozen=True)
class Rate:
    """How much of a task's texts was corrupted."""

    corruption: str
    task: str
    nominal: float
    words: int
    tokens: int


@dataclass(frozen=True)
class ResultFolder:
    """The results under one folder.

    Attributes:
        path: The folder; it need not exist yet.

    Raises:
        NotADirectoryError: There is a file of that name.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; name a folder for the results.")

    def corruptions(self) -> list[str]:
        """Names of the corruptions that have results, `clean` first."""
        if not self.path.is_dir():
            return []
        names = [folder.name for folder in self.path.iterdir() if (folder / _RESULTS).is_dir()]
        return sorted(names, key=lambda name: (name != "clean", name))

    def cache(self, corruption: str = "clean") -> AtomicResultCache:
        """The mteb cache of one corruption's results, whose files are written atomically."""
        return AtomicResultCache(self.path / corruption)

    def predictions(self, corruption: str, meta: ModelMeta) -> Path:
        """The folder of the predictions of a model, or of one run of it.

        Args:
            corruption: `clean`, or the corruption's name.
            meta: mteb's record of the model; its `experiment_kwargs` name the run.
        """
        folder = self.path / corruption / _PREDICTIONS / meta.model_name_as_path() / str(meta.revision)
        return folder / _EXPERIMENTS / meta.experiment_name if meta.experiment_name else folder

    def prediction_file(self, score: TaskScore) -> Path:
        """Where the predictions behind a score are, if they were kept."""
        root = self.path / score.corruption
        folder = score.path.relative_to(root / _RESULTS).parent
        return root / _PREDICTIONS / folder / f"{score.task}_predictions.json"

    def record(self, tasks: Iterable[AbsTask], parts: Iterable[AbsTask] = ()) -> None:
        """Note what is asked of tasks: their type, main metric, splits and subsets.

        Args:
            tasks: Those that were asked for.
            parts: Those that are only parts of an average, and have no score of their own unless they are asked for too.
        """
        known = self._tasks()
        for task in parts:
            if task.metadata.name not in known:
                note(self.path / _TASKS, task.metadata.name, _description(task) | {"part": True})
        for task in tasks:
            note(self.path / _TASKS, task.metadata.name, _description(task))

    def record_rate(self, corruption: str, task: str, tally: Tally) -> None:
        """Note how much of a task's texts was corrupted."""
        counted = {"nominal": tally.nominal, "words": tally.words, "tokens": tally.tokens}
        note(self.path / corruption / _RATES, task, counted)

    def rates(self) -> list[Rate]:
        """How much of the texts was corrupted, by corruption and task."""
        return [
            Rate(corruption, task, **values)
            for corruption in self.corruptions()
            for task, values in notes(self.path / corruption / _RATES).items()
        ]

    def scores(self) -> list[TaskScore]:
        """Every score in the folder; results that lack some of what was asked of their task, and parts, are left out.

        Raises:
            ValueError: A file is broken.
        """
        tasks = self._tasks()
        found = [self._score(corruption, path, tasks) for corruption, path in self.files()]
        return [score for score in found if score is not None and not tasks.get(score.task, {}).get("part")]

    def incomplete(self) -> list[Path]:
        """Result files that lack some of what was asked of their task: the next run completes them."""
        tasks = self._tasks()
        return [path for corruption, path in self.files() if self._score(corruption, path, tasks) is None]

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every result file, with the name of its corruption."""
        for corruption in self.corruptions():
            for path in sorted((self.path / corruption / _RESULTS).rglob("*.json")):
                if path.name != META and not path.name.startswith("."):
                    yield corruption, path

    def _score(self, corruption: str, path: Path, tasks: dict[str, Any]) -> TaskScore | None:
        result, meta = read_json(path), read_json(path.parent / META)
        asked = tasks.get(result["task_name"])
        if asked is None:  # what mteb knows of the task, if anything
            asked = {"type": "unknown", "metric": "main_score", "splits": {}}
            with suppress(KeyError):
                metadata = get_task(result["task_name"]).metadata
                asked |= {"type": metadata.type, "metric": metadata.main_score}
        main = {
            (split, one["hf_subset"]): one["main_score"] for split, all_ in result["scores"].items() for one in all_
        }
        wanted = [(split, subset) for split, subsets in asked["splits"].items() for subset in subsets] or list(main)
        if not set(wanted) <= set(main) or any(main[one] is None for one in wanted):
            return None
        settings = meta.get("loader_kwargs") or {}
        changed, revision = dict(meta.get("experiment_kwargs") or {}), str(result.get("dataset_revision"))
        changed = {name: changed[name] for name in changed if name not in ("method", "prompt", "corruption")}
        return TaskScore(
            model=meta["name"],
            revision=str(meta["revision"]),
            method=settings.get("method", ""),
            prompt=settings.get("prompt", ""),
            settings=changed,
            corruption=corruption,
            task=result["task_name"],
            task_type=asked["type"],
            metric=asked["metric"],
            score=sum(main[one] for one in wanted) / len(wanted),
            seconds=float(result.get("evaluation_time") or 0.0),
            mteb_version=str(result.get("mteb_version")),
            path=path,
            local_data=revision if is_local(revision) else "",
        )

    def _tasks(self) -> dict[str, Any]:
        return notes(self.path / _TASKS)


def _description(task: AbsTask) -> dict[str, Any]:
    """What is asked of a task."""
    splits = dict.fromkeys(task.eval_splits, sorted(task.hf_subsets or ["default"]))
    return {"type": task.metadata.type, "metric": task.metadata.main_score, "splits": splits}


def note(folder: Path, task: str, content: dict[str, Any]) -> None:
    """Note something of a task in `folder/TASK.json`, atomically; a note that says so already stays as it is."""
    path = folder / f"{task}.json"
    if path.is_file() and read_json(path) == content:
        return
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def notes(folder: Path) -> dict[str, dict[str, Any]]:
    """What was noted, by task."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; the result folder is incomplete, copy it again.")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is broken ({error}); delete it, and the next run measures it again.") from None
    return content
