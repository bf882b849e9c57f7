"""Reading what enters each router at one token a text, while the model runs.

A learned router and its spectral twin see the same `x`, so `x` at the pooled token is all that any routing signal needs.
The hooks stay on the model: they are picklable, do nothing outside a recording, and a recording belongs to the thread
that opened it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ssmoe_embed.families import MoELayer


class Recording:
    """The router inputs of one forward pass at the pooled tokens."""

    def __init__(self, rows: torch.Tensor) -> None:
        """Record the given rows of the flattened batch.

        Args:
            rows: Index of each text's pooled token among the `N = B·T` tokens, `[B]`.
        """
        self.rows = rows
        self.inputs: dict[int, torch.Tensor] = {}

    def take(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep `x [B,H]` of one layer."""
        flat = hidden.reshape(-1, hidden.shape[-1])  # [N,H] or [B,T,H] → [N,H]
        self.inputs[layer] = flat[self.rows.to(flat.device)]


_CURRENT: ContextVar[Recording | None] = ContextVar("ssmoe_embed_recording", default=None)


@contextmanager
def recording(rows: torch.Tensor) -> Iterator[Recording]:
    """Record the router inputs at the rows `[B]` while the block runs the model."""
    current = Recording(rows)
    token = _CURRENT.set(current)
    try:
        yield current
    finally:
        _CURRENT.reset(token)


def install_taps(layers: Sequence[MoELayer]) -> None:
    """Put a tap before every router."""
    for layer in layers:
        layer.router.register_forward_pre_hook(_Tap(layer.index))


class _Tap:
    """A forward pre-hook; a class, so that the model stays picklable."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(self, router: nn.Module, args: tuple[Any, ...]) -> None:
        current = _CURRENT.get()
        if current is not None:
            current.take(self.layer, args[0])
