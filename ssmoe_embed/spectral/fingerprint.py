"""Telling whether spectral routers belong to a model, whatever its name, place on disk or dtype."""

from __future__ import annotations

import torch

_TOLERANCE = 0.01
"""Relative distance of two fingerprints of one router: rounding to bfloat16 moves them by about 0.001."""


def fingerprint(router: torch.Tensor) -> torch.Tensor:
    """A short summary of a learned router: each row summed with fixed pseudo-random signs.

    Args:
        router: `R [E,H]` of any floating dtype.

    Returns:
        float32 `[E]`.
    """
    scrambled = torch.arange(router.shape[-1]) * 2654435761  # Knuth's multiplicative hash: the same on every version
    signs = ((scrambled >> 15) & 1) * 2.0 - 1.0  # [H]
    return (router.detach().cpu().double() @ signs.double()).float()  # not every device knows float64


def same_router(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two fingerprints `[E]` are of one router, up to rounding."""
    distance = (first - second).norm()
    return bool(distance <= _TOLERANCE * torch.maximum(first.norm(), second.norm()))
