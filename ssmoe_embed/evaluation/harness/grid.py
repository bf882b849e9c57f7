"""A grid of language models, as the paper's tables 1, 5 and 12 compare them: its cells and the harness' tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.common.loading import HubOptions
from ssmoe_embed.evaluation.tasks.local_data import LocalData, harness_data
from ssmoe_embed.language_model.dropped import CALIBRATION_TOKENS
from ssmoe_embed.language_model.dropping import DropBy, Limits
from ssmoe_embed.language_model.loading import Routing, RoutingSettings, load_tokenizer, parse_routing, skeleton
from ssmoe_embed.language_model.measures import calibration_ids, predicted_ids, read_text, text_digest

PAPER_TASKS = {
    "ARC-C": "arc_challenge",
    "ARC-E": "arc_easy",
    "BoolQ": "boolq",
    "GSM8K": "gsm8k",
    "HellaSwag": "hellaswag",
    "OBQA": "openbookqa",
    "PIQA": "piqa",
    "WinoGrande": "winogrande",
}
"""The harness' name of each task of table 1."""
MMLU = "mmlu"
"""In table 8 only."""
OFFLINE_TASKS = ("ssmoe_continuation", "ssmoe_dictionary")
SETS = {"paper": tuple(PAPER_TASKS.values()), "offline": OFFLINE_TASKS}
TASK_FOLDER = Path(__file__).parent / "tasks"


def find_tasks(names: Sequence[str]) -> list[str]:
    """The harness' names of tasks and of sets of tasks, each once, in order.

    Raises:
        ValueError: None are given.
    """
    if not names:
        raise ValueError("Name at least one task: paper, offline, or tasks of lm-evaluation-harness.")
    found = [task for name in names for task in SETS.get(name, (name,))]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks that can be loaded, data and all.

    Attributes:
        manager: The harness' task manager.
        revisions: By task, `local-` and a hash where its data come from a folder, else empty.
    """

    manager: Any
    revisions: dict[str, str]


def load_tasks(names: Sequence[str], num_fewshot: int | None = None, data: LocalData | None = None) -> LoadedTasks:
    """A task manager of the harness, after a trial that its tasks can be loaded.

    Args:
        names: The harness' names.
        num_fewshot: Examples that each prompt shall have; None for the task's own number.
        data: Folder that the tasks' data are in; None for the hub.

    Raises:
        ImportError: The harness, or something a task needs, is not installed.
        ValueError: A task is not known, its data can neither be found here nor fetched, or it has fewer such examples.
    """
    require_package("lm_eval", "ssmoe-embed[lm-eval]")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(include_defaults=not set(names) <= set(OFFLINE_TASKS))
    revisions = {}
    for name in names:
        if name not in manager.all_tasks:
            near = [task for task in manager.all_tasks if name in task][:20]
            raise ValueError(unknown("task", name, [*SETS, *OFFLINE_TASKS, *PAPER_TASKS.values(), MMLU, *near]))
        try:
            with harness_data(data, name) as found:
                loaded = manager.load([name])["tasks"]
        except Exception as error:  # the data sets' library and the hub's each have errors of their own
            if isinstance(error, ImportError) or (isinstance(error, FileNotFoundError) and data is not None):
                raise
            said = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"
            raise ValueError(
                f"The data of task {name!r} is not on this machine and could not be fetched ({said}). "
                "Run once with a network (and without HF_HUB_OFFLINE), name a folder that holds them with --dataset-dir, or "
                "use --tasks offline, which needs none."
            ) from error
        revisions[name] = ",".join(found)
        for task in loaded.values():
            _check_fewshot(task, num_fewshot or 0)
    return LoadedTasks(manager, revisions)


def _check_fewshot(task: Any, wanted: int) -> None:
    """Refuse more examples a prompt than a task has; those that are always asked without any are asked so."""
    if wanted and task.get_config("num_fewshot") != 0:
        there = len(task.fewshot_docs())
        if wanted > there:
            raise ValueError(
                f"num_fewshot={wanted} is more than the {there} examples that task {task.config.task!r} has for prompts; "
                f"choose at most {there}."
            )


def metric_of(task: str, metrics: Sequence[str]) -> str:
    """The harness' key of the score that is reported for a task.

    Args:
        task: The task.
        metrics: The keys that the harness gave, such as `acc,none`.
    """
    wanted = "exact_match,strict-match" if task == "gsm8k" else "acc,none"
    if wanted in metrics:
        return wanted
    scores = [key for key in metrics if "," in key and "_stderr" not in key]
    if not scores:
        raise ValueError(f"The harness gave no score for task {task!r}.")
    return scores[0]


@cache
def _manager(*, include_defaults: bool) -> Any:
    """A task manager; finding all of the harness' own tasks takes it many seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASK_FOLDER), include_defaults=include_defaults)


@dataclass(frozen=True)
class GridCell:
    """One model of the grid.

    Attributes:
        routing: How its tokens find their experts, see `parse_routing`.
        drop: What decided which experts it lost; None if it has them all.
    """

    routing: str
    drop: DropBy | None = None

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        return str(self.routing) if self.drop is None else f"{self.routing}+{self.drop}-drop"

    @classmethod
    def parse(cls, name: str) -> GridCell:
        """The cell of that name.

        Raises:
            ValueError: It names none.
        """
        if name in NAMED:
            return NAMED[name]
        routing, _, drop = name.rpartition("+")
        if not routing or ":" in drop:  # it has no dropping, or a setting has a +
            return cls(parse_routing(name))
        if not drop.endswith("-drop"):
            raise ValueError(unknown("cell", name, [*NAMED, *(cell.name for cell in GRID)]))
        return cls(parse_routing(routing), DropBy.parse(drop.removesuffix("-drop"), "drop"))


NAMED = {
    "random-drop": GridCell(Routing.ORIGINAL, DropBy.RANDOM),
    "router-drop": GridCell(Routing.ORIGINAL, DropBy.ROUTER),
    "ssmoe-drop": GridCell(Routing.SSMOE, DropBy.SSMOE),
}
"""The paper's three ways to drop; only the third also routes by SSMoE."""

GRID = (
    GridCell(Routing.ORIGINAL),
    GridCell(Routing.SSMOE),
    *NAMED.values(),
    GridCell(Routing.HASH),
    GridCell(Routing.RANDOM),
    GridCell(Routing.AVERAGE_EV),
)
"""All that the paper compares."""


@dataclass(frozen=True)
class GridOptions:
    """How a grid is measured.

    Attributes:
        keep: Fraction of the experts that stays in the cells that drop some.
        num_fewshot: Examples in each prompt; None for the task's own number.
        limit: Only the first examples of each task; None for all.
        settings: What the routings leave open.
        calibration: Text file on which experts are scored; by default the sample in the package.
        seed: Of random dropping.
        batch_size: Batch size, in requests.
        overlap_prompts: Prompts of each task on which the overlap of routings is measured; 0 for none.
        text: Text file whose perplexity is measured too, with the windows that `perplexity` has by default.
        dtype: Dtype of the weights; by default the checkpoint's own.
        loading: For `load`: `device_map`, `revision`, …
        data: Folder that the tasks' data are in; None for the hub.
        progress: Show progress bars.
    """

    keep: float = 0.75
    num_fewshot: int | None = None
    limit: int | None = None
    settings: RoutingSettings = field(default_factory=RoutingSettings)
    calibration: str | Path | None = None
    seed: int = 0
    batch_size: int = 8
    overlap_prompts: int = 16
    text: str | Path | None = None
    dtype: str | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    data: LocalData | None = None
    progress: bool = True

    def record(self, base: str | Path) -> dict[str, Any]:
        """What decides the scores, as JSON values; batches and devices do not."""
        return {
            "base": str(base),
            "revision": self.loading.get("revision"),
            "dtype": self.dtype,
            "keep": self.keep,
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "settings": self.settings.as_dict(),
            "calibration": None if self.calibration is None else text_digest(self.calibration),
            "seed": self.seed,
        }


def check_grid(base: str | Path, cells: Sequence[GridCell], options: GridOptions) -> None:
    """Refuse a grid of which a later cell could not be measured (see `run_grid`); no weights are read for it.

    Raises:
        FileNotFoundError: A text file is missing.
        UnsupportedModelError: The model is dense, or cannot lose experts.
        ValueError: `keep` leaves too few experts, or a text is too short.
    """
    hub = HubOptions.among(options.loading)
    model = skeleton(base, hub)
    if any(cell.drop is not None for cell in cells):
        Limits.of(model).kept(options.keep)
    scored = any(cell.drop not in (None, DropBy.RANDOM) for cell in cells)
    if options.text is None and (options.calibration is None or not scored):
        return
    tokenizer = load_tokenizer(base, hub)
    if scored and options.calibration is not None:
        calibration_ids(tokenizer, read_text(options.calibration), CALIBRATION_TOKENS)
    if options.text is not None:
        predicted_ids(tokenizer, read_text(options.text))
