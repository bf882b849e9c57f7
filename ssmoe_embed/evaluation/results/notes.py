"""JSON files of a result folder, and what is noted beside mteb's results: a small file for each task.

One file for all tasks would be read, changed and written again, so evaluations that share a folder, say one on each GPU,
would undo each other's notes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssmoe_embed.common.files import atomic_file


def note(folder: Path, task: str, content: dict[str, Any]) -> None:
    """Note something of a task in `folder/TASK.json`, atomically; a note that says so already stays as it is."""
    path = folder / f"{task}.json"
    if path.is_file() and read_json(path) == content:
        return
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def notes(folder: Path) -> dict[str, dict[str, Any]]:
    """What was noted, by task."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; the result folder is incomplete, copy it again.")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is broken ({error}); delete it, and the next run measures it again.") from None
    return content
