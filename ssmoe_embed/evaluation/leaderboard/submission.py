"""What a leaderboard submission takes, made of measured results.

That is the folder that the results repository takes, and for the pull request that adds the model to mteb its record as
code and the report of a mock run. Only what anybody can reproduce is taken: clean texts, the model's own settings, and a
model that is on the hub at a commit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssmoe_embed.common.files import atomic_file, atomic_folder
from ssmoe_embed.evaluation.leaderboard.checks import (
    META,
    check_data,
    check_reproducible,
    find_measured,
    one_version,
    result_files,
)
from ssmoe_embed.evaluation.results.folder import ResultFolder, read_json

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import EncoderProtocol
import re
from typing import Any

SETTINGS = "run_settings.jsonl"
MOCK_RUN = "mteb_mock_run_results.md"
"""mteb's own name for the report."""
CODE = "ssmoe_models.py"


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
    results = results if isinstance(results, ResultFolder) else ResultFolder(Path(results))
    wanted = list(tasks)
    chosen = find_measured(results, model, revision)
    check_reproducible(chosen.model, chosen.revision, read_json(chosen.folder / META))
    files = result_files(chosen, wanted)
    check_data(files)
    version = one_version(files)
    with atomic_folder(output, overwrite=overwrite) as folder:
        target = folder / "results" / chosen.folder.parent.name / chosen.folder.name
        target.mkdir(parents=True)
        for file in [*files, chosen.folder / META]:
            shutil.copyfile(file, target / file.name)
        _copy_settings(chosen.folder / SETTINGS, target / SETTINGS, {file.stem for file in files})
        meta = (chosen.folder / META).read_text(encoding="utf-8")
        _write(folder / CODE, model_code(meta))
        if load is not None:
            encoder = load(chosen.model, chosen.revision)
            _write(folder / MOCK_RUN, mock_run_report(encoder, chosen.model, chosen.revision))
    return Submission(
        folder=Path(output),
        model=chosen.model,
        revision=chosen.revision,
        tasks=tuple(sorted(file.stem for file in files)),
        version=version,
        unknown=unknown_fields(meta),
        mock_run=load is not None,
    )


def _copy_settings(source: Path, target: Path, tasks: set[str]) -> None:
    """Copy the lines of mteb's record of how things were run that belong to the tasks."""
    if source.is_file():
        lines = source.read_text(encoding="utf-8").split("\n")
        kept = [line for line in lines if line.strip() and json.loads(line).get("task") in tasks]
        _write(target, "".join(f"{line}\n" for line in kept))


def mock_run_report(encoder: EncoderProtocol, model: str, revision: str) -> str:
    """Run mteb's mock tasks, which need no data, and return the report that its reviewers ask for.

    Args:
        encoder: The model.
        model: The name it must have.
        revision: The revision it must have.

    Raises:
        ValueError: It is another model or revision, or a mock task failed.
    """
    import mteb

    meta = encoder.mteb_model_meta
    if (meta.name, meta.revision) != (model, revision):
        raise ValueError(
            f"The mock run is of {meta.name} at {meta.revision}, the results are of {model} at {revision}; load the model "
            "that was measured."
        )
    report = mteb.mock_run(encoder)
    if not report.all_passed:
        raise ValueError(f"The model failed some of mteb's mock tasks:\n{report.to_markdown()}")
    text: str = report.to_markdown()
    return text + "\n"


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


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


def model_code(meta_json: str) -> str:
    """The Python file, from the `model_meta.json` beside the results."""
    meta = _meta(meta_json).model_copy(update={"loader": load_ssmoe, "experiment_kwargs": None})
    return _FILE.format(variable=variable_name(str(meta.name)), record=meta.to_python())


def unknown_fields(meta_json: str) -> tuple[str, ...]:
    """What the leaderboard shows and the record does not tell: to be filled in by hand."""
    meta = _meta(meta_json)
    return tuple(name for name in _EXPECTED if getattr(meta, name) is None)


def variable_name(model: str) -> str:
    """A Python name for a model: `ssmoe/olmoe-7b` gives `ssmoe_olmoe_7b`."""
    name = re.sub(r"\W+", "_", model).strip("_").lower()
    return f"model_{name}" if name[:1].isdigit() else name


def load_ssmoe(*_: Any, **__: Any) -> None:
    """Stands in the record for the function of that name in the file that is written."""
    raise NotImplementedError


def _meta(meta_json: str) -> Any:
    from mteb.models import ModelMeta

    return ModelMeta.model_validate_json_resolved(meta_json)
