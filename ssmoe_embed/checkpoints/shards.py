"""A checkpoint's tensors, read one at a time from its safetensors shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open


class TensorSource(Protocol):
    """Tensors by name, read one at a time: a checkpoint on disk."""

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of that name exists."""
        ...

    def names(self) -> Iterable[str]:
        """All names."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor."""
        ...

    def read_row(self, name: str, row: int) -> torch.Tensor:
        """`tensor[row]`, without reading the others."""
        ...


_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors shards.

    Every read maps one shard and unmaps it again, so that resident memory does not grow with what was read before.
    """

    folder: Path
    shards: dict[str, str]
    """The shard's file name for each tensor's name."""

    @classmethod
    def open(cls, path_or_id: str | Path, **hub_kwargs: Any) -> Checkpoint:
        """Find the shards of a local folder or of a hub repository, which is downloaded if need be.

        Args:
            path_or_id: A folder, or a hub id such as `"allenai/OLMoE-1B-7B-0924"`.
            **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            FileNotFoundError: The folder holds no safetensors checkpoint.
            ValueError: Its index or its one file is damaged.
        """
        folder = Path(path_or_id)
        if not folder.is_dir():
            patterns = ["config.json", "*.safetensors", _INDEX]
            folder = Path(snapshot_download(str(path_or_id), allow_patterns=patterns, **hub_kwargs))
        if (folder / _INDEX).is_file():
            return cls(folder, _indexed(folder / _INDEX))
        if (folder / _SINGLE).is_file():
            with _opened(folder / _SINGLE) as file:
                return cls(folder, dict.fromkeys(file.keys(), _SINGLE))
        raise FileNotFoundError(
            f"{folder} holds neither {_INDEX} nor {_SINGLE}; from_checkpoint reads safetensors only. "
            "Load the model and use SpectralRouters.from_model(model) instead."
        )

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of that name exists."""
        return name in self.shards

    def names(self) -> Iterable[str]:
        """All names."""
        return self.shards

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor."""
        with _opened(self._shard(name)) as file:
            return file.get_tensor(name).clone()

    def read_row(self, name: str, row: int) -> torch.Tensor:
        """`tensor[row]`, without reading the others."""
        with _opened(self._shard(name)) as file:
            return file.get_slice(name)[row].clone()

    def _shard(self, name: str) -> Path:
        """The file that holds the tensor."""
        if name not in self.shards:
            raise ValueError(
                f"The checkpoint in {self.folder} has no tensor {name!r}; it does not fit its config.json."
            )
        return self.folder / self.shards[name]


def _indexed(index: Path) -> dict[str, str]:
    """The shard's file name for each tensor's name."""
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{index} is no index of a checkpoint ({error!r}); copy or download the checkpoint again."
        ) from error


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """One shard, mapped while the block runs; what is wrong with it is said with its name."""
    try:
        with safe_open(str(shard), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{shard} is missing, truncated or corrupted ({error}); copy or download the checkpoint again."
        ) from error
