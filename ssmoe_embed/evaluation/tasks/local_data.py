"""Tasks' data from a folder of this machine instead of the hub: `--dataset-dir`.

The tasks stay as they are: what they ask the `datasets` library for is looked up in the folder, under the task's name or the
data set's. Results of such data carry `local-` and a hash as the revision of the data.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

LOCAL = "local-"
"""What the revision of local data begins with."""
_FORMATS = {".parquet": "parquet", ".jsonl.gz": "json", ".jsonl": "json"}
_FILE = re.compile(r"(?:\.(\w+))?(\.parquet|\.jsonl|\.jsonl\.gz)")
_LOADERS = ("mteb.abstasks.abstask", "mteb.abstasks.retrieval_dataset_loaders")
"""The modules of mteb that load data; the second looks for configurations first."""
_SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder of `datasets.save_to_disk` is known, of several splits and of one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalData:
    """A folder of data sets.

    A data set is a folder `NAME/`, as `save_to_disk` writes it or with data files as the hub has them; or a file for each
    split, `NAME.SPLIT.jsonl.gz`, or one for the split that is evaluated, `NAME.jsonl.gz`; `.jsonl` and `.parquet` too. NAME
    is a task's name, or the data set's on the hub with its `/`. A configuration is a folder in it, `NAME/CONFIGURATION/`.

    Attributes:
        path: The folder.

    Raises:
        NotADirectoryError: There is no such folder.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).expanduser())
        if not self.path.is_dir():
            raise NotADirectoryError(f"There is no folder {self.path}; name the one that holds the tasks' data.")

    def files(self, names: Sequence[str]) -> list[Path]:
        """The files of the first of the names that the folder holds.

        Raises:
            FileNotFoundError: It holds none of them.
        """
        for name in names:
            folder = self.path / name
            if folder.is_dir():
                found = [one for one in sorted(folder.rglob("*")) if one.is_file() and not one.name.startswith(".")]
            else:
                found = self._single(name)
            if found:
                return found
        looked = " or ".join(names)
        raise FileNotFoundError(
            f"{self.path} holds no data of {looked}: neither a folder of that name nor files such as {names[0]}.jsonl.gz or "
            f"{names[0]}.test.parquet; see docs/offline.md."
        )

    def revision(self, names: Sequence[str]) -> str:
        """`local-` and a hash of names and content of the files of a data set."""
        digest = hashlib.sha256()
        for path in self.files(names):
            digest.update(f"{path.relative_to(self.path).as_posix()}\x00".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return LOCAL + digest.hexdigest()[:16]

    def load(self, names: Sequence[str], configuration: str | None = None, *, split: str | None = None) -> Any:
        """A data set, as `datasets.load_dataset` gives it.

        Args:
            names: Under which it may be there.
            configuration: Which of its configurations.
            split: Only this one; a file without a split in its name is `test`.

        Raises:
            FileNotFoundError: It is not there.
        """
        import datasets

        files, root = self.files(names), self.root(names)
        if root is None:
            found = datasets.DatasetDict(_read(files))
        else:
            inner = root / configuration if configuration and (root / configuration).is_dir() else root
            found = _read_folder(inner, configuration if inner is root else None)
        if split is None or not isinstance(found, Mapping):
            return found
        if split not in found:
            raise ValueError(f"The data at {files[0].parent} have no split {split!r}, only {', '.join(found)}.")
        return found[split]

    def root(self, names: Sequence[str]) -> Path | None:
        """The folder of a data set; None if it is files."""
        for name in names:
            if (self.path / name).is_dir():
                return self.path / name
            if self._single(name):
                return None
        return None

    def _single(self, name: str) -> list[Path]:
        """Files `NAME[.SPLIT].FORMAT`."""
        place = self.path / name
        near = sorted(place.parent.glob(f"{place.name}.*")) if place.parent.is_dir() else []
        return [file for file in near if _FILE.fullmatch(file.name[len(place.name) :])]


def _read(files: Sequence[Path]) -> dict[str, Any]:
    """Splits from files `NAME[.SPLIT].FORMAT`."""
    import datasets

    found = {}
    for file in files:
        split, suffix = re.search(_FILE.pattern + "$", file.name).groups()  # type: ignore[union-attr]
        found[split or "test"] = datasets.load_dataset(_FORMATS[suffix], data_files=str(file), split="train")
    return found


def _read_folder(folder: Path, configuration: str | None) -> Any:
    """A folder of `save_to_disk`, one of such folders by split, or one of data files."""
    import datasets

    if any((folder / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(str(folder))
    splits = [one for one in sorted(folder.iterdir()) if (one / "state.json").is_file()]
    if splits:
        return datasets.DatasetDict({one.name: datasets.load_from_disk(str(one)) for one in splits})
    if configuration not in datasets.get_dataset_config_names(str(folder)):
        configuration = None  # the folder holds this one alone
    return datasets.load_dataset(str(folder), configuration)


@contextmanager
def instead_of_the_hub(load: Callable[..., Any], modules: Sequence[str]) -> Iterator[None]:
    """Let `datasets.load_dataset` be another function while tasks load their data.

    Args:
        load: Called with a data set's path and configuration, and `split`.
        modules: Modules that have imported that function by name.
    """
    import datasets

    own = datasets.load_dataset

    def given(path: str, name: str | None = None, *_rest: Any, split: str | None = None, **_more: Any) -> Any:
        with patch.object(datasets, "load_dataset", own):
            return load(path, name, split)

    with ExitStack() as patches:
        for module in (datasets, *(sys.modules[one] for one in modules if one in sys.modules)):
            if hasattr(module, "load_dataset"):
                patches.enter_context(patch.object(module, "load_dataset", given))
        yield


def use_local(task: AbsTask, data: LocalData) -> AbsTask:
    """Let a task of mteb load its data from a folder; all else of it stays.

    Args:
        task: The task, which is changed.
        data: The folder.

    Raises:
        FileNotFoundError: Its data are not there.
    """
    path = str(task.metadata.dataset["path"])
    names = (task.metadata.name, path)
    revision = data.revision(names)
    own: Callable[..., None] = task.load_data
    if hasattr(task, "load_folder"):  # data as their publisher packed them
        own = partial(task.load_folder, data.root(names))

    def load(asked: str, configuration: str | None, split: str | None) -> Any:
        if asked != path:
            raise FileNotFoundError(
                f"{names[0]} also asks for the data set {asked}, which is not looked up in the folder."
            )
        return data.load(names, configuration, split=split)

    def load_data(*arguments: Any, **keywords: Any) -> None:
        if task.data_loaded:
            return
        if isinstance(own, partial):
            own()
            return
        with _names_in(data.root(names)), instead_of_the_hub(load, (*_LOADERS, type(task).__module__)):
            own(*arguments, **keywords)
        for difference in differences(task):
            logger.warning("%s differs from what mteb knows of it: %s", task.metadata.name, difference)

    def unload_data() -> None:
        unload()
        task.metadata = metadata  # unloading takes a task's own away

    unload = task.unload_data
    metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, "revision": revision}})
    task.metadata, task.load_data, task.unload_data = metadata, load_data, unload_data
    return task


def is_local(revision: object) -> bool:
    """Whether a revision is that of local data."""
    return str(revision).startswith(LOCAL)


def differences(task: AbsTask) -> list[str]:
    """How the loaded data of a task differ from what its metadata say: missing columns, other numbers of examples."""
    found = []
    statistics = task.metadata.descriptive_stats or {}
    for split in task.eval_splits:
        rows = _of_split(task.dataset, split)
        known = statistics.get(split, {}).get("num_samples")
        if rows is None:
            found.append(f"there is no split {split!r}")
            continue
        if known is not None and sum(map(len, rows)) != known:
            found.append(f"split {split!r} has {sum(map(len, rows)):,} examples instead of {known:,}")
        columns = [set(one.column_names) for one in rows if hasattr(one, "column_names")]
        named = [getattr(task, name) for name in dir(type(task)) if name.endswith(("column_name", "column_names"))]
        flat = [one for value in named for one in (value if isinstance(value, list | tuple) else [value])]
        wanted = dict.fromkeys(one for one in flat if isinstance(one, str)) if len(rows) == 1 else ()
        found += [f"split {split!r} has no column {one!r}" for one in wanted if columns and one not in columns[0]]
    return found


def _of_split(dataset: Any, split: str) -> list[Any] | None:
    """The tables whose rows are a split's examples: one, one a subset, or corpus and queries."""
    if split in dataset:
        one = dataset[split]
        return [one["corpus"], one["queries"]] if isinstance(one, Mapping) and "corpus" in one else [one]
    parts = [_of_split(one, split) for one in dataset.values() if isinstance(one, Mapping)]
    return [row for part in parts if part is not None for row in part] or None


def _names_in(folder: Path | None) -> ExitStack:
    """Let mteb look for configurations and splits in a folder, where it has one."""
    import datasets

    patches = ExitStack()
    for name in ("get_dataset_config_names", "get_dataset_split_names") if folder is not None else ():
        own = getattr(datasets, name)

        def of_folder(_path: str, *_revision: Any, own: Any = own, **keywords: Any) -> Any:
            return own(str(folder), **{key: value for key, value in keywords.items() if key != "revision"})

        patches.enter_context(patch(f"{_LOADERS[1]}.{name}", of_folder))
    return patches


@contextmanager
def harness_data(data: LocalData | None, task: str) -> Iterator[list[str]]:
    """Let a task of lm-evaluation-harness load its data from a folder, inside the block.

    Args:
        data: The folder; None for the hub.
        task: The task's name, or that of a group whose tasks are configurations of one data set.

    Yields:
        The revisions of what was loaded, as it is.
    """
    revisions: list[str] = []
    if data is None:
        yield revisions
        return

    def load(path: str, configuration: str | None, split: str | None) -> Any:
        names = (task, path)
        found = data.load(names, configuration, split=split)
        if data.revision(names) not in revisions:
            revisions.append(data.revision(names))
        return found

    with instead_of_the_hub(load, ()):
        yield revisions
