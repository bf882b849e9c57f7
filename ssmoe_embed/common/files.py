"""Writing that never leaves half a file, and reading that says what is wrong."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_METADATA_KEY = "ssmoe_embed"
"""All metadata is one JSON value under this key: several keys would be written in an arbitrary order."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when the block ends well, flushed to disk; else nothing changes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
