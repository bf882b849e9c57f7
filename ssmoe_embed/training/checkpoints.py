"""The folder in which a training keeps its checkpoints until its output is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ssmoe_embed.common.files import write_files

_RUN = "run.json"


def claim(work: Path, run: dict[str, Any]) -> None:
    """Make sure that checkpoints are of this run, and say so in the folder; what a run left before its first one is removed.

    Raises:
        ValueError: They are of another.
    """
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
        shutil.rmtree(work)
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


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
