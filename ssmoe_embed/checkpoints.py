"""A checkpoint's tensors, read without a model and one at a time: safetensors shards, FP8, MXFP4."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

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
            try:
                return cls(folder, dict(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{folder / _INDEX} is no index of a checkpoint ({error!r}); copy or download the checkpoint again."
                ) from error
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

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor."""
        with self._shard(name) as file:
            return file.get_tensor(name).clone()

    def read_row(self, name: str, row: int) -> torch.Tensor:
        """`tensor[row]`, without reading the others."""
        with self._shard(name) as file:
            return file.get_slice(name)[row].clone()

    def _shard(self, name: str) -> AbstractContextManager[Any]:
        """The file that holds the tensor, opened."""
        if name not in self.shards:
            raise ValueError(
                f"The checkpoint in {self.folder} has no tensor {name!r}; it does not fit its config.json."
            )
        return _opened(self.folder / self.shards[name])


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


_SCALES = ("_scale_inv", "_scale")
"""Endings of the scale's name; whatever it is called, the weight is multiplied by it."""
_UNREADABLE = (
    "{name} is kept as {dtype} and cannot be read by itself; load the model, let transformers dequantize it, and use "
    "SpectralRouters.from_model(model)."
)


def read_row(source: Checkpoint, name: str, row: int) -> torch.Tensor:
    """One expert's matrix of a tensor `[E,R,C]` of a checkpoint.

    Raises:
        ValueError: It is kept in eight bits, for which such checkpoints have no common form.
    """
    weight = source.read_row(name, row)
    if weight.itemsize == 1:
        raise ValueError(_UNREADABLE.format(name=name, dtype=weight.dtype))
    return weight


class StoredModule:
    """A module on disk under the names that it has in memory, used as the live one is.

    `module.experts.down_proj[3]` reads one row of a fused parameter, `module.gate.weight` a whole matrix, and
    `module.scale.double()` any other tensor.
    """

    def __init__(self, source: Checkpoint, path: str) -> None:
        self._source, self._path = source, path

    def __getattr__(self, name: str) -> StoredModule | torch.Tensor:
        path = f"{self._path}.{name}"
        return read_weight(self._source, path) if name == "weight" else StoredModule(self._source, path)

    def __getitem__(self, row: int) -> torch.Tensor:
        return read_row(self._source, self._path, row)

    def double(self) -> torch.Tensor:
        """The whole tensor in float64."""
        return read_weight(self._source, self._path).double()


def read_weight(source: Checkpoint, name: str) -> torch.Tensor:
    """One matrix `[R,C]` of a checkpoint, in float32 if it is kept in eight bits, otherwise as it is.

    Raises:
        ValueError: Its scale is missing or does not fit.
    """
    weight = source.read(name)
    if weight.itemsize > 1:
        return weight
    scale_name = scale_of(source, name)
    if scale_name is None or not weight.is_floating_point():
        raise ValueError(_UNREADABLE.format(name=name, dtype=weight.dtype))
    scale = source.read(scale_name).float()
    if scale.numel() == 1:
        return weight.float() * scale.reshape(())
    blocks = [_block(size, count) for size, count in zip(weight.shape, scale.shape, strict=False)]
    if scale.ndim != weight.ndim or None in blocks:
        raise ValueError(
            f"{scale_name} has shape {tuple(scale.shape)}, which does not fit {name} of shape {tuple(weight.shape)}; "
            "copy or download the checkpoint again."
        )
    for dim, (block, size) in enumerate(zip(blocks, weight.shape, strict=True)):
        scale = scale.repeat_interleave(block or 1, dim=dim).narrow(dim, 0, size)  # one a block → one an entry
    return weight.float() * scale


def scale_of(source: Checkpoint, name: str) -> str | None:
    """The name of a weight's scale in a checkpoint, if it has one."""
    return next((name + ending for ending in _SCALES if name + ending in source), None)


def _block(size: int, count: int) -> int | None:
    """Entries a block: the power of two that cuts `size` entries into `count` blocks, if there is one."""
    if count == 1:
        return size
    return next((block for block in (1 << power for power in range(16)) if -(-size // block) == count), None)


_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1 by its lower three bits; the fourth is the sign."""
_BIAS = 127
"""Of a scale's exponent, E8M0."""


def unpack_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weights that packed blocks stand for; exact in every float dtype that holds the exponents.

    Args:
        blocks: Two weights a byte, the even one in the lower half: uint8 `[…,A,B/32,16]`.
        scales: The exponent of each block of 32 weights: uint8 `[…,A,B/32]`.
        dtype: Of the result.

    Returns:
        `[…,A,B]`.

    Raises:
        ValueError: The shapes do not fit one another.
    """
    if blocks.shape[:-1] != scales.shape:
        raise ValueError(
            f"MXFP4 blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} do not belong together; download the "
            "checkpoint again."
        )
    values = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=dtype, device=blocks.device)
    pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=1)  # [256,2]: lower half, upper half
    weights = pairs[blocks.int()]  # […,A,B/32,16] → […,A,B/32,16,2]
    exponents = (scales.int() - _BIAS)[..., None]  # […,A,B/32,1]
    return torch.ldexp(weights.flatten(-2), exponents).flatten(-2).to(dtype)  # […,A,B/32,32] → […,A,B]
