"""Folders that appear whole or not at all, and what a run that was killed has left of one."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

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
    """A folder to fill, which appears under `path` only when the block ends well; else nothing changes.

    Args:
        path: The folder's final place.
        overwrite: Replace what is there.
        room: Bytes that it will need.

    Raises:
        FileExistsError: Something is there and `overwrite` is false.
        OSError: The place cannot be written to, or has too little room; the error names `path`.
    """
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
        folder, lock = found or _begun(path, task)
    except PermissionError as error:
        raise PermissionError(error.errno, f"{error.strerror}: nothing can be written there", str(path)) from None
    work = Workplace(folder / "new", folder / "notes")
    try:
        with _named(folder, path):
            check_room(path, room)
            work.new.mkdir()
            work.notes.mkdir(exist_ok=True)
            yield work
            _sync(work.new)
            if path.exists():
                path.replace(folder / "old")
            work.new.replace(path)
    finally:
        _restore(folder, path)
        _discard(folder, lock)


def check_room(path: Path, room: int) -> None:
    """Make sure that the disk of `path`, whose parent exists, has room for that many bytes more.

    Raises:
        OSError: It has not.
    """
    free, needed = shutil.disk_usage(path.parent).free, room + _SPARE
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free on its disk", str(path)
        )


def size_of(folder: str | Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _prefix(path: Path) -> str:
    return f".{path.name}.unfinished-"


def _begun(path: Path, task: str | None) -> tuple[Path, FileLock]:
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


def _sync(folder: Path) -> None:
    """Flush every file below `folder` to disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
