"""One writer at a time; readers go on meanwhile."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.search.errors import BusyIndexError

_LOCK = "writer.lock"
_HOLDER = "writer.json"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for a block; the system lets go of it if the process dies.

    Raises:
        BusyIndexError: Another writer holds it; the message names it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyIndexError(
            f"{_holder(folder)} is writing to the index in {folder}; wait until it has finished, or stop it."
        ) from None
    try:
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with atomic_file(folder / _HOLDER) as file:
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}).encode())
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """Who holds the lock."""
    try:
        found = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
        return f"Process {found['pid']} on {found['host']} (since {found['since']})"
    except (OSError, ValueError, KeyError):
        return "Another process"
