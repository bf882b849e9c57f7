"""Writing that never leaves half a file, and reading that says what is wrong."""

from __future__ import annotations

import glob
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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
    prefix = f".{path.name}.unfinished-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_unless_alive(left)
    file, name = _begun(path.parent, prefix)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            name.chmod(0o666 & ~_umask())
            if sys.platform != "win32":
                name.replace(path)  # while it is locked, so that no one takes it for a dead process's
        if sys.platform == "win32":
            name.replace(path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def _begun(folder: Path, prefix: str) -> tuple[IO[bytes], Path]:
    """A new file, locked; the lock is the system's, which lets go of it when the process dies."""
    while True:
        handle, name = tempfile.mkstemp(prefix=prefix, dir=folder)
        file = os.fdopen(handle, "wb")
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        if Path(name).exists():  # else another process took the new file for a dead one's
            return file, Path(name)
        file.close()


def _remove_unless_alive(left: Path) -> None:
    """Remove an unfinished file that no process is writing; without such locks (Windows) it stays."""
    if sys.platform != "win32":
        with suppress(OSError), left.open("rb") as file:  # it is alive, or gone, or another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)


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


def _umask() -> int:
    """The process's file mode mask, which only setting it tells."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
