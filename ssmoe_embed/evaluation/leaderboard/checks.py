"""Whether measured results can be submitted to a leaderboard, and which files they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.evaluation.results.folder import ResultFolder, read_json
from ssmoe_embed.evaluation.tasks.corruption import CLEAN
from ssmoe_embed.evaluation.tasks.local_data import is_local

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

META = "model_meta.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_ON_HUB = ("local", "baseline")
"""Organisations of models that have no place on the hub."""


@dataclass(frozen=True)
class MeasuredModel:
    """The default run of a model on clean texts."""

    model: str
    revision: str
    folder: Path


def find_measured(results: ResultFolder, model: str | None = None, revision: str | None = None) -> MeasuredModel:
    """The one model in the folder that was run on clean texts as it is.

    Raises:
        ValueError: There is none, or there are several; the message lists them.
    """
    measured = [*_default_runs(results)]
    if not measured or (model in _deviating(results) and model not in {one.model for one in measured}):
        raise ValueError(_nothing(results, model))
    for setting, value in (("model", model), ("revision", revision)):
        there = sorted({str(getattr(one, setting)) for one in measured})
        if value is not None and value not in there:
            raise ValueError(unknown(setting, value, there))
        measured = [one for one in measured if value in (None, getattr(one, setting))]
    if len(measured) > 1:
        names = ", ".join(f"{one.model} at {one.revision}" for one in measured)
        raise ValueError(
            f"{results.path} holds results of several models: {names}. Name one with --model and --revision."
        )
    return measured[0]


def _nothing(results: ResultFolder, model: str | None) -> str:
    """Why there is nothing to submit, and what to do."""
    advice = (
        f"Measure the model as it is: `ssmoe evaluate {model or 'MODEL'} --tasks … --output {results.path}`, without "
        "--methods, --prompts, --settings and --corrupt. If the deviating settings are the ones to submit, build and "
        "publish a model that has them saved."
    )
    deviating = _deviating(results)
    if deviating:
        return (
            f"{results.path} holds only runs whose settings deviate from the model's own ({', '.join(deviating)}), and a "
            f"leaderboard takes a model as it is saved. {advice}"
        )
    corrupted = [name for name in results.corruptions() if name != CLEAN]
    if corrupted:
        return f"{results.path} holds only results on corrupted texts ({', '.join(corrupted)}). {advice}"
    return f"{results.path} holds no results. {advice}"


def _root(results: ResultFolder) -> Path:
    return results.path / CLEAN / "results"


def _default_runs(results: ResultFolder) -> Iterator[MeasuredModel]:
    for path in sorted(_root(results).glob(f"*/*/{META}")):
        meta = read_json(path)
        yield MeasuredModel(str(meta["name"]), str(meta["revision"]), path.parent)


def _deviating(results: ResultFolder) -> list[str]:
    """Names of the models that were run on clean texts with other settings than their own."""
    paths = _root(results).glob(f"*/*/experiments/*/{META}")
    return sorted({str(read_json(path)["name"]) for path in paths})


def check_reproducible(model: str, revision: str, meta: dict[str, Any]) -> None:
    """Make sure that others can run the very model.

    Raises:
        ValueError: It is not on the hub at a commit, or was not run as it is.
    """
    organisation, _, name = model.partition("/")
    if meta.get("experiment_kwargs"):
        raise ValueError(
            f"The results of {model} were measured with {meta['experiment_kwargs']}; a leaderboard takes a model as it is "
            "saved, on clean texts. Measure it without these."
        )
    if organisation in _NOT_ON_HUB or not name:
        raise ValueError(
            f"{model} is a model of this machine, which nobody else could run. Upload its folder to the hub, measure it "
            "under its name there (`ssmoe evaluate ORG/NAME …`), and submit that."
        )
    if not _COMMIT.fullmatch(revision):
        raise ValueError(
            f"{model} was measured at revision {revision!r}, which is no commit of the hub, so nobody could tell which "
            "files it stands for. Upload the model's folder to the hub and measure it under its name there."
        )


def result_files(measured: MeasuredModel, tasks: Sequence[AbsTask]) -> list[Path]:
    """The result files of the tasks; of one that averages others also the parts, as far as they are there.

    Raises:
        ValueError: Some task was not measured, or not in full; the message lists them all.
    """
    files: list[Path] = []
    lacking: list[str] = []
    for task in tasks:
        name: str = task.metadata.name
        path = measured.folder / f"{name}.json"
        missing = _missing(path, task)
        if missing:
            lacking.append(missing)
        parts = [part.metadata.name for part in task.tasks] if task.is_aggregate else []
        files += [one for one in (path, *(measured.folder / f"{part}.json" for part in parts)) if one.is_file()]
    if not tasks:
        raise ValueError("No task was named; name a benchmark such as 'MTEB(eng, v2)' or tasks.")
    if lacking:
        raise ValueError(
            f"The results of {measured.model} are not complete: {len(lacking)} of {len(tasks)} tasks are missing or lack a "
            f"part: {', '.join(lacking)}. Measure them with the same command and --output; what is there is kept."
        )
    return list(dict.fromkeys(files))


def check_data(files: Sequence[Path]) -> None:
    """Make sure that everything was measured on the hub's data.

    Raises:
        ValueError: Some was measured on local data; the message names tasks.
    """
    local = [file.stem for file in files if is_local(read_json(file).get("dataset_revision"))]
    if local:
        raise ValueError(
            f"{len(local)} tasks were measured on local data (--dataset-dir), such as {local[0]}; nobody else could tell "
            "whether they are the leaderboard's. Measure them again with a network and another --output."
        )


def one_version(files: Sequence[Path]) -> str:
    """The version of mteb that measured all results.

    Raises:
        ValueError: There are several; the message names tasks of each.
    """
    measured: dict[str, list[str]] = {}
    for file in files:
        measured.setdefault(str(read_json(file).get("mteb_version")), []).append(file.stem)
    if len(measured) > 1:
        told = "; ".join(f"{version}: {len(names)}, such as {names[0]}" for version, names in sorted(measured.items()))
        raise ValueError(
            f"The results were measured with several versions of mteb ({told}). Measure all tasks with one: "
            "`ssmoe evaluate … --overwrite`, or another --output."
        )
    return next(iter(measured))


def _missing(path: Path, task: AbsTask) -> str:
    """What a task's result lacks, empty if nothing."""
    from mteb.results import TaskResult

    name: str = task.metadata.name
    if not path.is_file():
        return name
    if task.is_aggregate:
        return ""
    lacking = TaskResult.from_disk(path).get_missing_evaluations(task)
    return (
        f"{name} ({', '.join(f'{split}: {sorted(subsets)}' for split, subsets in lacking.items())})" if lacking else ""
    )
