"""MXFP4, the form that GPT-OSS checkpoints keep their experts in (OCP Microscaling Formats 1.0)."""

from __future__ import annotations

import torch

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
