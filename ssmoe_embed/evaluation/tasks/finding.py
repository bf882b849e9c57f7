"""Names of task suites, benchmarks and tasks → mteb tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING

from ssmoe_embed.common.lazy import require_mteb
from ssmoe_embed.evaluation.paper.embeddings import DATASETS

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

PAPER, OFFLINE, PAPER_VISION, OFFLINE_VISION = SUITES = ("paper", "offline", "paper-vision", "offline-vision")
"""The 19 tasks of the paper, as `MTEB(eng, v1)` defines them; those whose data come with this package; both of images."""


def find_tasks(names: Iterable[str | AbsTask]) -> list[AbsTask]:
    """The tasks of that name, each once, in the order asked for.

    Args:
        names: `paper`, `offline`, a benchmark such as `MTEB(eng, v2)`, a task's name, or a task itself.

    Raises:
        ImportError: mteb is not installed.
        ValueError: A name is not known; the message lists near ones.
    """
    require_mteb()
    found: dict[str, AbsTask] = {}
    for name in names:
        for task in _named(name) if isinstance(name, str) else [name]:
            found.setdefault(task.metadata.name, task)
    if not found:
        raise ValueError(f"No task was named; choose {', '.join(SUITES)}, a benchmark or tasks of mteb.")
    return list(found.values())


def expanded(tasks: Iterable[AbsTask]) -> list[AbsTask]:
    """The tasks, with those that only average others put after their parts."""
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    found: dict[str, AbsTask] = {}
    for task in tasks:
        for part in task.metadata.tasks if isinstance(task, AbsTaskAggregate) else ():
            found.setdefault(part.metadata.name, part)
        found.setdefault(task.metadata.name, task)
    return list(found.values())


def _named(name: str) -> Sequence[AbsTask]:
    """What one name stands for."""
    import mteb

    from ssmoe_embed.evaluation.tasks.offline import offline_task, offline_tasks

    if name in (OFFLINE_VISION, PAPER_VISION):
        from ssmoe_embed.evaluation.vision.tasks import vision_tasks

        return vision_tasks(paper=name == PAPER_VISION)
    if name == OFFLINE:
        return offline_tasks()
    if name == PAPER:
        known = {task.metadata.name: task for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}
        return [known[dataset.task] for dataset in DATASETS]
    from ssmoe_embed.evaluation.vision.tasks import vision_task

    own = offline_task(name) or vision_task(name)
    if own is not None:
        return [own]
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        pass
    try:
        return [mteb.get_task(name)]
    except KeyError:
        raise ValueError(_unknown(name)) from None


def _unknown(name: str) -> str:
    """The message for a name that stands for nothing."""
    spelled = {known.casefold(): known for known in _all_names()}
    near = [spelled[one] for one in get_close_matches(name.casefold(), spelled, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"The task {name!r} is not known.{hint} Choose {', '.join(SUITES)}, a benchmark such as 'MTEB(eng, v2)' (in "
        "quotes), or the name of a task of mteb."
    )


@cache
def _all_names() -> tuple[str, ...]:
    """Every name that stands for something, told by mteb's classes of tasks, not one of which is made."""
    import mteb
    from mteb.get_tasks import TASK_LIST

    from ssmoe_embed.evaluation.tasks.offline import offline_tasks

    tasks = [task.metadata.name for task in (*offline_tasks(), *TASK_LIST)]
    return (*tasks, *SUITES, *(benchmark.name for benchmark in mteb.get_benchmarks()))
