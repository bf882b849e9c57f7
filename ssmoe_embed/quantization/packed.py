"""Weights in 4 bits that are unpacked one expert at a time, when the model asks for it.

The experts of all families index their fused weight by expert, `self.gate_up_proj[expert]`. What stands there in a 4-bit
model answers with that one expert's matrix, so a forward pass unpacks the experts that tokens were sent to, one after the
other, and nothing is kept: peak memory stays near that of the 4-bit model. Everything is in buffers, so moving, copying and
pickling a model work, and threads can share it.
"""

from __future__ import annotations

import ctypes
import logging
from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import Self

from ssmoe_embed.checkpoints import unpack_mxfp4
from ssmoe_embed.quantization.settings import QuantizationSettings

_NESTED_BLOCK = 256
"""Scales that share a scale of their own, in double quantisation; the value is bitsandbytes' own."""


class Packable(NamedTuple):
    """A parameter that is to be packed."""

    shape: torch.Size
    block_size: int
    """Weights that share a scale."""


class PackedMatrices(nn.Module):
    """A packed stack of matrices, `[E,A,B]`, in the place of a parameter.

    Attributes:
        shape: The parameter's own shape: `[E,A,B]`, or `[A,B]` for a single matrix.
        dtype: What they are unpacked to; `.half()` and the like change it, as they would a parameter's.
        device: Where they are.
    """

    like: torch.Tensor

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device))

    @abstractmethod
    def unpack(self, index: int) -> torch.Tensor:
        """One matrix `[A,B]`."""

    def __getitem__(self, index: int | torch.Tensor) -> torch.Tensor:
        return self.unpack(int(index))

    def __len__(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1

    def unpacked(self) -> torch.Tensor:
        """All of them, in the parameter's shape."""
        return torch.stack([self.unpack(index) for index in range(len(self))]).view(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """What they are unpacked to."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.like.device

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Let `.to`, `.half` and the like move the packed numbers but never round them."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                moved = fn(buffer)
                self._buffers[name] = moved if name == "like" else buffer.to(moved.device)
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand in for the whole parameter where a family computes with all experts at once, as Llama 4 does."""

        def whole(value: Any) -> Any:
            return value.unpacked() if isinstance(value, PackedMatrices) else value

        return func(*map(whole, args), **{name: whole(value) for name, value in (kwargs or {}).items()})

    def extra_repr(self) -> str:
        """The parameter's shape and dtype."""
        return f"shape={tuple(self.shape)}, dtype={self.dtype}"


def is_packed(model: nn.Module) -> bool:
    """Whether some of a model's weights are packed."""
    return any(isinstance(module, PackedMatrices) for module in model.modules())


class BlockwiseMatrices(PackedMatrices):
    """NF4 or FP4 by bitsandbytes (arXiv 2305.14314): each block of weights in a row shares a scale.

    There is room for the matrices, which `put` fills.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor
    nested_scales: torch.Tensor

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, settings: QuantizationSettings
    ) -> None:
        super().__init__(shape, dtype, device)
        self.settings = settings
        count, size = len(self), prod(self.shape[-2:])
        blocks = -(-size // settings.block_size)
        self._reserve("packed", (count, -(-size // 2)), torch.uint8)
        self._reserve("scales", (count, blocks), torch.uint8 if settings.double else torch.float32)
        if settings.double:
            self._reserve("offsets", (count,), torch.float32)
            self._reserve("nested_scales", (count, -(-blocks // _NESTED_BLOCK)), torch.float32)

    def _reserve(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.empty(shape, dtype=dtype, device=self.device))

    def put(self, index: int, matrix: torch.Tensor) -> None:
        """Pack one matrix `[A,B]`."""
        packed, state = _bitsandbytes().quantize_4bit(
            matrix.to(self.device).contiguous(),
            blocksize=self.settings.block_size,
            compress_statistics=self.settings.double,
            quant_type=str(self.settings.values),
        )
        self.packed[index] = packed.flatten()
        self.scales[index] = state.absmax
        if self.settings.double:
            self.offsets[index] = state.offset
            self.nested_scales[index] = state.state2.absmax

    def unpack(self, index: int) -> torch.Tensor:
        """See `PackedMatrices.unpack`."""
        library = _bitsandbytes()
        nested: dict[str, Any] = {}
        if self.settings.double:
            state = library.QuantState(
                self.nested_scales[index], code=_scale_values(self.device), blocksize=_NESTED_BLOCK, dtype=torch.float32
            )
            nested = {"offset": self.offsets[index], "state2": state}
        state = library.QuantState(
            self.scales[index],
            # one long row: bitsandbytes 0.50 takes the wrong scales on a CPU where 64 does not divide the rows
            shape=(1, prod(self.shape[-2:])),
            dtype=self.dtype,
            blocksize=self.settings.block_size,
            quant_type=str(self.settings.values),
            **nested,
        )
        matrix: torch.Tensor = library.dequantize_4bit(self.packed[index][:, None], state)
        return matrix.view(self.shape[-2:])


@cache
def _bitsandbytes() -> Any:
    """`bitsandbytes.functional`, whose import, on some CPUs, advises a package that only speeds up what is not used here."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    finally:
        logger.setLevel(level)
    return functional


@cache
def _scale_values(device: torch.device) -> torch.Tensor:
    """The 256 values of bitsandbytes' 8-bit scales, once a device."""
    values: torch.Tensor = _bitsandbytes().create_dynamic_map()
    return values.to(device)


class Mxfp4Matrices(PackedMatrices):
    """MXFP4 as the checkpoint has it, nothing rounded again: `[E,B,A]` packed, `[E,A,B]` as a parameter.

    Args:
        blocks: uint8 `[E,B,A/32,16]`.
        exponents: uint8 `[E,B,A/32]`.
        dtype: To unpack to.
    """

    blocks: torch.Tensor
    exponents: torch.Tensor

    def __init__(self, blocks: torch.Tensor, exponents: torch.Tensor, dtype: torch.dtype) -> None:
        count, columns, groups = exponents.shape
        super().__init__((count, groups * 32, columns), dtype, blocks.device)
        self.register_buffer("blocks", blocks)
        self.register_buffer("exponents", exponents)

    def unpack(self, index: int) -> torch.Tensor:
        """See `PackedMatrices.unpack`."""
        return unpack_mxfp4(self.blocks[index], self.exponents[index], self.dtype).T  # [B,A] → [A,B]


class PackedLinear(nn.Module):
    """An `nn.Linear` whose weight `[out,in]` is packed; its bias `[out]` is at full precision."""

    def __init__(self, weight: PackedMatrices, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[…,in]` to `[…,out]`."""
        return F.linear(x, self.weight[0], self.bias)


def trim() -> None:
    """Hand the holes of the heap back, where the C library can; elsewhere do nothing."""
    function = _malloc_trim()
    if function is not None:
        function(0)


@cache
def _malloc_trim() -> Any:
    """Glibc's function, or None."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


class TrimAfter:
    """A forward hook that trims the heap after a module that unpacks on the CPU; a class, so that models stay picklable."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Trim, if it ran on the CPU."""
        if output.device.type == "cpu":
            trim()
