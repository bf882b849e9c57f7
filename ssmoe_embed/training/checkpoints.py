"""The folder in which a training keeps its checkpoints: one process at a time, one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ssmoe_embed.common.files import write_files

_RUN, _LOCK = "run.json", "lock"


@contextmanager
def claimed(work: Path, run: dict[str, Any]) -> Iterator[None]:
    """Keep a run's folder to this process; the lock is the system's, which lets go of it when the process dies.

    The folder is removed at the end, and where nothing can be resumed from.

    Raises:
        BlockingIOError: Another process is training there.
        ValueError: The checkpoints are of another run.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"Another process is training in {work}; wait until it is done, or choose another output."
        ) from None
    is_over = False
    try:
        _check(work, run)
        yield
        is_over = True
    finally:
        is_over = is_over or last_checkpoint(work) is None
        lock.release()
        if is_over:
            shutil.rmtree(work, ignore_errors=True)


def _check(work: Path, run: dict[str, Any]) -> None:
    """Make sure that checkpoints are of this run, and say so in the folder."""
    file = work / _RUN
    if file.is_file():
        other = sorted(_differences(json.loads(file.read_text(encoding="utf-8")), run))
        if not other:
            return
        if last_checkpoint(work) is not None:
            raise ValueError(
                f"{work} holds checkpoints of another run, with other {', '.join(other)}; choose another output, or remove "
                "that folder."
            )
        for left in {*work.iterdir()} - {work / _LOCK}:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    write_files(work, {_RUN: json.dumps(run, indent=2) + "\n"})


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names whose values differ."""
    found: list[str] = []
    for name in {*before, *now}:
        one, two = before.get(name), now.get(name)
        if one != two:
            found += _differences(one, two) if isinstance(one, dict) and isinstance(two, dict) else [name]
    return found


def last_checkpoint(work: Path) -> Path | None:
    """The last checkpoint that was written whole: the trainer writes its state last. Others are removed."""
    found = list(work.glob("checkpoint-*"))
    whole = [folder for folder in found if (folder / "trainer_state.json").is_file()]
    for folder in {*found} - {*whole}:
        shutil.rmtree(folder)
    return max(whole, key=step_of) if whole else None


def step_of(path: Path) -> int:
    """The step in a name such as `checkpoint-200`."""
    return int(path.name.split(".")[0].rpartition("-")[2])


def as_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
