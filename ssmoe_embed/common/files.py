"""Writing of files and folders that never leaves half of them, and reading that says what is wrong."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from filelock import FileLock

if sys.platform != "win32":
    import fcntl

_METADATA_KEY = "ssmoe_embed"
"""All metadata is one JSON value under this key: several keys would be written in an arbitrary order."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when the block ends well, flushed to disk; else nothing changes.

    What `kill -9` or a power failure left of an earlier write to the same path is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}*") if sys.platform != "win32" else ():
        with suppress(OSError), left.open("rb") as other:  # it is alive, or gone, or another user's
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)
    file, name = _begun_file(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            mask = os.umask(0)  # which only setting it tells
            os.umask(mask)
            name.chmod(0o666 & ~mask)
            if sys.platform != "win32":
                name.replace(path)  # while it is locked, so that no one takes it for a dead process's
        if sys.platform == "win32":
            name.replace(path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def _prefix(path: Path) -> str:
    """What names of unfinished work on a path begin with."""
    return f".{path.name}.unfinished-"


def _begun_file(path: Path) -> tuple[IO[bytes], Path]:
    """A new file, locked; the lock is the system's, which lets go of it when the process dies."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
        file = os.fdopen(handle, "wb")
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        if Path(name).exists():  # else another process took the new file for a dead one's
            return file, Path(name)
        file.close()


def write_files(folder: str | Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    """Write files into a folder, each atomically; texts in UTF-8.

    Returns:
        Their paths, in order.
    """
    for name, content in contents.items():
        with atomic_file(Path(folder) / name) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    return [Path(folder) / name for name in contents]


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, atomically; the same input gives the same bytes."""
    from safetensors.torch import save

    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    content = save(packed, metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    with atomic_file(path) as file:
        file.write(content)


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, corrupted or not one of this package's.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}; make it with `ssmoe build` or SpectralRouters.save.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or corrupted ({error}); copy or download it again, or rebuild it with `ssmoe build`."
        ) from error
    except (KeyError, json.JSONDecodeError):
        raise ValueError(
            f"{path} was not written by ssmoe_embed: its metadata lack {_METADATA_KEY!r}. "
            "Rebuild the file with `ssmoe build`."
        ) from None
    return tensors, metadata


_LOCK, _TASK = "lock", "task"
_SPARE = 8 << 20
"""Bytes that any work on a folder needs at least, for its configuration and notes."""


@dataclass(frozen=True)
class Workplace:
    """Where a folder is made, beside its final place.

    Attributes:
        new: The folder to fill, empty at first.
        notes: A folder of notes from which the same task goes on after a kill; it vanishes with the work.
    """

    new: Path
    notes: Path


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False, room: int = 0) -> Iterator[Path]:
    """A folder to fill, which appears under `path` only when the block ends well; else nothing changes. See `workplace`."""
    with workplace(path, overwrite=overwrite, room=room) as work:
        yield work.new


@contextmanager
def workplace(
    path: str | Path, *, overwrite: bool = False, room: int = 0, task: str | None = None
) -> Iterator[Workplace]:
    """A folder to fill as `atomic_folder` gives it, with notes from which a killed run's next one goes on.

    An error or Ctrl-C leaves nothing. What `kill -9` or a power failure left is taken over by the next run with the same
    path and task, and removed by one with another; a living process's work is never touched.

    Args:
        path: The folder's final place.
        overwrite: Replace what is there.
        room: Bytes that it will need.
        task: What identifies the work: the notes of another task are never used. None for no notes to go on from.

    Raises:
        FileExistsError: Something is there and `overwrite` is false.
        OSError: The place cannot be written to, or has too little room; the error names `path`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _leftovers(path, task)
        if path.exists() and not overwrite:
            if found:
                _discard(*found)
            raise FileExistsError(f"{path} exists already; choose another output or pass overwrite=True (--overwrite).")
        folder, lock = found or _begun_folder(path, task)
    except PermissionError as error:
        raise PermissionError(error.errno, f"{error.strerror}: nothing can be written there", str(path)) from None
    work = Workplace(folder / "new", folder / "notes")
    try:
        with _named(folder, path):
            free, needed = shutil.disk_usage(path.parent).free, room + _SPARE
            if free < needed:
                space = f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free on its disk"
                raise OSError(errno.ENOSPC, space, str(path))
            work.new.mkdir()
            work.notes.mkdir(exist_ok=True)
            yield work
            for file in filter(Path.is_file, work.new.rglob("*")):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            if path.exists():
                path.replace(folder / "old")
            work.new.replace(path)
    finally:
        _restore(folder, path)
        _discard(folder, lock)


def size_of(folder: str | Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _begun_folder(path: Path, task: str | None) -> tuple[Path, FileLock]:
    """A new place to work in, locked; the lock is the system's, which lets go of it when the process dies."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        lock = _locked(folder)
        if lock is not None:  # else another process took the new folder for a dead one's
            (folder / _TASK).write_text(task or "", encoding="utf-8")
            return folder, lock


def _leftovers(path: Path, task: str | None) -> tuple[Path, FileLock] | None:
    """Clear away what dead processes left of work on `path`; the folder to go on in, if one did the same task."""
    found = None
    for folder in sorted(path.parent.glob(f"{glob.escape(_prefix(path))}*")):
        lock = _locked(folder)
        if lock is None:
            continue
        _restore(folder, path)
        if task is not None and found is None and _task(folder) == task:
            shutil.rmtree(folder / "new", ignore_errors=True)
            found = folder, lock
        else:
            _discard(folder, lock)
    return found


def _locked(folder: Path) -> FileLock | None:
    """The folder's lock, held; None if a living process holds it or the folder is gone."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return None
    if folder.is_dir() and (folder / _LOCK).exists():
        return lock
    lock.release()
    return None


def _task(folder: Path) -> str | None:
    """The task of a work folder, if that is known."""
    try:
        return (folder / _TASK).read_text(encoding="utf-8")
    except OSError:
        return None


def _restore(folder: Path, path: Path) -> None:
    """Put back what was to be replaced, if the work was interrupted between the two renames."""
    if (folder / "old").exists() and not path.exists():
        (folder / "old").replace(path)


def _discard(folder: Path, lock: FileLock) -> None:
    """Remove a work folder. It is no task's from the first moment on, so that no one goes on in half a folder."""
    (folder / _TASK).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    shutil.rmtree(folder, ignore_errors=True)  # where an open file cannot be removed, its lock was left


@contextmanager
def _named(folder: Path, path: Path) -> Iterator[None]:
    """Let errors of writing name the folder's final place, not the one that vanishes."""
    from safetensors import SafetensorError

    def final(text: object) -> str:
        return str(text).replace(str(folder / "new"), str(path)).replace(str(folder), str(path))

    try:
        yield
    except SafetensorError as error:
        if "os error 28" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
    except OSError as error:
        if str(folder) not in str(error):
            raise
        raise OSError(error.errno, final(error.strerror), final(error.filename)) from error
