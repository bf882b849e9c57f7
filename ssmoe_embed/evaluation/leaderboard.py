"""What a leaderboard submission takes, made of measured results.

That is the folder that the results repository takes, and for the pull request that adds the model to mteb its record as
code and the report of a mock run. Only what anybody can reproduce is taken: clean texts, the model's own settings, and a
model that is on the hub at a commit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks import AbsTask
from mteb.models import EncoderProtocol, ModelMeta
from mteb.results import TaskResult

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.files import atomic_folder
from ssmoe_embed.evaluation.results.folder import META, ResultFolder, read_json
from ssmoe_embed.evaluation.tasks.corruption import CLEAN
from ssmoe_embed.evaluation.tasks.local_data import is_local

SETTINGS = "run_settings.jsonl"
MOCK_RUN = "mteb_mock_run_results.md"
"""mteb's own name for the report."""
CODE = "ssmoe_models.py"
_NOT_ON_HUB = ("local", "baseline")
"""Organisations of models that have no place on the hub."""
_EXPECTED = (
    "release_date",
    "languages",
    "license",
    "n_parameters",
    "memory_usage_mb",
    "max_tokens",
    "embed_dim",
    "reference",
    "citation",
)
"""Fields that mteb's leaderboard shows."""


@dataclass(frozen=True)
class Submission:
    """A folder that is ready to be submitted.

    Attributes:
        folder: The folder.
        model: The model's name on the hub.
        revision: Its commit.
        tasks: The tasks, by name.
        version: The version of mteb that measured them.
        unknown: Fields of the model's record that the leaderboard shows and nobody told: to be filled in by hand.
        mock_run: Whether the report of a mock run is there.
    """

    folder: Path
    model: str
    revision: str
    tasks: tuple[str, ...]
    version: str
    unknown: tuple[str, ...]
    mock_run: bool

    @property
    def command(self) -> str:
        """The command that submits the results."""
        return f"mteb submit-results --output-folder {self.folder} --models {self.model} --create-pr"


def prepare_submission(
    results: ResultFolder | str | Path,
    output: str | Path,
    tasks: Iterable[AbsTask],
    *,
    model: str | None = None,
    revision: str | None = None,
    load: Callable[[str, str], EncoderProtocol] | None = None,
    overwrite: bool = False,
) -> Submission:
    """Write the folder of a submission; nothing appears unless all is well.

    Args:
        results: What was measured.
        output: The new folder.
        tasks: The tasks of the benchmark: all of them must have been measured, and only they are submitted.
        model: Which of the measured models; may be left out if there is one.
        revision: Which of its revisions; may be left out if there is one.
        load: Given the model's name and revision, loads it as mteb takes it, for the mock run; None to leave that out.
        overwrite: Replace what is under `output`.

    Raises:
        FileExistsError: `output` exists and `overwrite` is false.
        ValueError: The results cannot be submitted; the message says why and what to do.
    """
    source = _measured(results if isinstance(results, ResultFolder) else ResultFolder(Path(results)), model, revision)
    told = read_json(source / META)
    model, revision = str(told["name"]), str(told["revision"])
    _check_reproducible(model, revision, told.get("experiment_kwargs"))
    files = _result_files(source, model, list(tasks))
    version = one_version(files)
    names = tuple(sorted(file.stem for file in files))
    meta = ModelMeta.model_validate_json_resolved((source / META).read_text(encoding="utf-8"))
    with atomic_folder(output, overwrite=overwrite) as folder:
        target = folder / "results" / source.parent.name / source.name
        target.mkdir(parents=True)
        for file in [*files, source / META]:
            shutil.copyfile(file, target / file.name)
        if (source / SETTINGS).is_file():
            lines = (source / SETTINGS).read_text(encoding="utf-8").split("\n")
            kept = [f"{line}\n" for line in lines if line.strip() and json.loads(line).get("task") in names]
            (target / SETTINGS).write_bytes("".join(kept).encode())
        (folder / CODE).write_bytes(_model_code(meta).encode())
        if load is not None:
            (folder / MOCK_RUN).write_bytes(_mock_run(load(model, revision), model, revision).encode())
    missing = tuple(name for name in _EXPECTED if getattr(meta, name) is None)
    return Submission(Path(output), model, revision, names, version, missing, load is not None)


def _measured(results: ResultFolder, model: str | None, revision: str | None) -> Path:
    """The results of the one model in the folder that was run on clean texts as it is."""
    place = results.path / CLEAN / "results"
    measured = {path.parent: read_json(path) for path in sorted(place.glob(f"*/*/{META}"))}
    deviating = sorted({str(read_json(path)["name"]) for path in place.glob(f"*/*/experiments/*/{META}")})
    if not measured or (model in deviating and model not in {str(meta["name"]) for meta in measured.values()}):
        raise ValueError(_nothing(results, model, deviating))
    for setting, key, value in (("model", "name", model), ("revision", "revision", revision)):
        there = sorted({str(meta[key]) for meta in measured.values()})
        if value is not None and value not in there:
            raise ValueError(unknown(setting, value, there))
        measured = {path: meta for path, meta in measured.items() if value in (None, str(meta[key]))}
    if len(measured) > 1:
        names = ", ".join(f"{meta['name']} at {meta['revision']}" for meta in measured.values())
        raise ValueError(
            f"{results.path} holds results of several models: {names}. Name one with --model and --revision."
        )
    return next(iter(measured))


def _nothing(results: ResultFolder, model: str | None, deviating: Sequence[str]) -> str:
    """Why there is nothing to submit, and what to do."""
    advice = (
        f"Measure the model as it is: `ssmoe evaluate {model or 'MODEL'} --tasks … --output {results.path}`, without "
        "--methods, --prompts, --settings and --corrupt. If the deviating settings are the ones to submit, build and "
        "publish a model that has them saved."
    )
    if deviating:
        return (
            f"{results.path} holds only runs whose settings deviate from the model's own ({', '.join(deviating)}), and a "
            f"leaderboard takes a model as it is saved. {advice}"
        )
    corrupted = ", ".join(name for name in results.corruptions() if name != CLEAN)
    held = f"only results on corrupted texts ({corrupted})" if corrupted else "no results"
    return f"{results.path} holds {held}. {advice}"


def _check_reproducible(model: str, revision: str, experiment: Mapping[str, Any] | None) -> None:
    """Make sure that others can run the very model: that it is on the hub at a commit, and was run as it is."""
    organisation, _, name = model.partition("/")
    if experiment:
        raise ValueError(
            f"The results of {model} were measured with {experiment}; a leaderboard takes a model as it is saved, on clean "
            "texts. Measure it without these."
        )
    if organisation in _NOT_ON_HUB or not name:
        raise ValueError(
            f"{model} is a model of this machine, which nobody else could run. Upload its folder to the hub, measure it "
            "under its name there (`ssmoe evaluate ORG/NAME …`), and submit that."
        )
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(
            f"{model} was measured at revision {revision!r}, which is no commit of the hub, so nobody could tell which "
            "files it stands for. Upload the model's folder to the hub and measure it under its name there."
        )


def _result_files(source: Path, model: str, tasks: Sequence[AbsTask]) -> list[Path]:
    """The result files of the tasks; of one that averages others also the parts, as far as they are there."""
    if not tasks:
        raise ValueError("No task was named; name a benchmark such as 'MTEB(eng, v2)' or tasks.")
    files: list[Path] = []
    lacking: list[str] = []
    for task in tasks:
        path = source / f"{task.metadata.name}.json"
        if not path.is_file():
            lacking.append(task.metadata.name)
        elif not task.is_aggregate:
            missing = TaskResult.from_disk(path).get_missing_evaluations(task)
            parts = ", ".join(f"{split}: {sorted(subsets)}" for split, subsets in missing.items())
            lacking += [f"{task.metadata.name} ({parts})"] if parts else []
        averaged = [source / f"{part.metadata.name}.json" for part in task.tasks] if task.is_aggregate else []
        files += [path, *(part for part in averaged if part.is_file())]
    if lacking:
        raise ValueError(
            f"The results of {model} are not complete: {len(lacking)} of {len(tasks)} tasks are missing or lack a part: "
            f"{', '.join(lacking)}. Measure them with the same command and --output; what is there is kept."
        )
    return list(dict.fromkeys(files))


def one_version(files: Sequence[Path]) -> str:
    """The version of mteb that measured all results, all of them on the hub's data.

    Raises:
        ValueError: There are several, or some were measured on local data; the message names tasks.
    """
    measured: dict[str, list[str]] = {}
    local = []
    for file in files:
        result = read_json(file)
        measured.setdefault(str(result.get("mteb_version")), []).append(file.stem)
        local += [file.stem] if is_local(result.get("dataset_revision")) else []
    if local:
        raise ValueError(
            f"{len(local)} tasks were measured on local data (--dataset-dir), such as {local[0]}; nobody else could tell "
            "whether they are the leaderboard's. Measure them again with a network and another --output."
        )
    if len(measured) > 1:
        told = "; ".join(f"{version}: {len(names)}, such as {names[0]}" for version, names in sorted(measured.items()))
        raise ValueError(
            f"The results were measured with several versions of mteb ({told}). Measure all tasks with one: "
            "`ssmoe evaluate … --overwrite`, or another --output."
        )
    return next(iter(measured))


def _mock_run(encoder: EncoderProtocol, model: str, revision: str) -> str:
    """The report that mteb's reviewers ask for, of its mock tasks, which need no data."""
    meta = encoder.mteb_model_meta
    if (meta.name, meta.revision) != (model, revision):
        raise ValueError(
            f"The mock run is of {meta.name} at {meta.revision}, the results are of {model} at {revision}; load the model "
            "that was measured."
        )
    report = mteb.mock_run(encoder)
    if not report.all_passed:
        raise ValueError(f"The model failed some of mteb's mock tasks:\n{report.to_markdown()}")
    return f"{report.to_markdown()}\n"


_FILE = '''"""Mixture-of-Experts language models as sentence-embedding models, without training."""

from __future__ import annotations

from typing import Any

from mteb.models.model_meta import ModelMeta, ScoringFunction


def load_ssmoe(model_name: str, revision: str | None = None, device: str | None = None, **kwargs: Any) -> Any:
    """Load a model with the package that made it: pip install 'ssmoe-embed[mteb]'."""
    from ssmoe_embed.evaluation.mteb.models import load_encoder

    return load_encoder(model_name, revision=revision, device=device, **kwargs)


{variable} = {record}
'''


def _model_code(meta: ModelMeta) -> str:
    """The model's record as a Python file; its variable is the model's name: `ssmoe/olmoe-7b` gives `ssmoe_olmoe_7b`."""

    def load_ssmoe(*_: Any, **__: Any) -> None:
        """Stands for the function of that name in the file."""

    name = re.sub(r"\W+", "_", str(meta.name)).strip("_").lower()
    record = meta.model_copy(update={"loader": load_ssmoe, "experiment_kwargs": None})
    return _FILE.format(variable=f"model_{name}" if name[:1].isdigit() else name, record=record.to_python())
