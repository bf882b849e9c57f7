"""What a checkpoint is to those who read it: tensors by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch


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
