"""The tasks of lm-evaluation-harness: the paper's, those that need no network, and loading them.

Source: SSMoE, section 4.1 and tables 1 and 8, https://arxiv.org/abs/2605.30992. The paper names tasks and shots, not
metrics. Its numbers fit plain accuracy (of the harness' `acc` and `acc_norm`) and, for GSM8K, `exact_match`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.evaluation.tasks.local_data import LocalData, harness_data

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

_METRICS = {"gsm8k": "exact_match,strict-match"}
_DEFAULT_METRIC = "acc,none"


def require_harness() -> None:
    """Say what to install where lm-evaluation-harness is missing.

    Raises:
        ImportError: It is not installed.
    """
    require_package("lm_eval", "ssmoe-embed[lm-eval]")


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
    require_harness()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(include_defaults=not set(names) <= set(OFFLINE_TASKS))
    revisions = {}
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(
                unknown("task", name, [*SETS, *SETS["offline"], *SETS["paper"], MMLU, *_near(name, manager.all_tasks)])
            )
        try:
            with harness_data(data, name) as found:
                loaded = manager.load([name])["tasks"]
        except ImportError:
            raise
        except FileNotFoundError as error:
            if data is None:
                raise _not_there(name, error) from error
            raise
        except Exception as error:  # the data sets' library and the hub's each have errors of their own
            raise _not_there(name, error) from error
        revisions[name] = ",".join(found)
        for task in loaded.values():
            _check_fewshot(task, num_fewshot or 0)
    return LoadedTasks(manager, revisions)


def _not_there(name: str, error: Exception) -> ValueError:
    """What to do where a task's data cannot be loaded."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return ValueError(
        f"The data of task {name!r} is not on this machine and could not be fetched ({type(error).__name__}: {first}). "
        "Run once with a network (and without HF_HUB_OFFLINE), name a folder that holds them with --dataset-dir, or use "
        "--tasks offline, which needs none."
    )


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
    wanted = _METRICS.get(task, _DEFAULT_METRIC)
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


def _near(name: str, known: Sequence[str]) -> list[str]:
    return [task for task in known if name in task][:20]
