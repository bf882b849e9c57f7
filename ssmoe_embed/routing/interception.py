"""Replacing what one `F.linear` inside a function returns, while the rest of the function runs as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import Self


def intercepted(
    function: Callable[..., Any],
    weight: Callable[[], torch.Tensor],
    replace: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, int]:
    """Call a function whose product of `hidden` and `weight` is replaced; whatever follows it stays the function's own.

    The weight is known by identity; a matrix of its shape in another dtype or on another device counts as a copy of it.

    Args:
        function: Is called with `hidden` and all further arguments.
        weight: Gives `W [E,H]`, asked for when a product is made.
        replace: Given `[N,H]` and their product with `W`, `[N,E]`, gives what takes its place, `[N,E]`.
        hidden: `[…,H]`.
        *args: Handed on.
        **kwargs: Handed on.

    Returns:
        What the function returns, and how often the product was made.
    """
    call = _Call(weight, replace)
    if type(hidden) is torch.Tensor:
        result = function(_Watched.of(hidden, call), *args, **kwargs)
        return _unwatched(result), call.times
    with _Watching(call):  # for kinds of tensors that cannot be of a second kind as well
        return function(hidden, *args, **kwargs), call.times


_as_plain_tensors = torch._C.DisableTorchFunctionSubclass
"""A context in which operations on a kind of tensor are not seen."""


@dataclass(slots=True)
class _Call:
    """One call of `intercepted`."""

    weight: Callable[[], torch.Tensor]
    replace: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    times: int = 0

    def linear(self, hidden: torch.Tensor, matrix: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`F.linear`, replaced where the matrix is the weight."""
        result, weight = F.linear(hidden, matrix, *args, **kwargs), self.weight()
        copied = matrix.dtype != weight.dtype or matrix.device != weight.device
        if matrix is not weight and not (copied and matrix.shape == weight.shape):
            return result
        self.times += 1
        plain = hidden.as_subclass(torch.Tensor) if isinstance(hidden, _Watched) else hidden
        if result.ndim == 2:
            return self.replace(plain, result)
        experts, width = matrix.shape
        replaced = self.replace(plain.reshape(-1, width), result.reshape(-1, experts))
        return replaced.reshape(result.shape)


class _Watched(torch.Tensor):
    """The hidden state on its way to the product, and what is made of it until then.

    A kind of tensor costs less than a `TorchFunctionMode`: only operations on it are seen, none of those that follow.
    """

    call: _Call

    @classmethod
    def of(cls, tensor: torch.Tensor, call: _Call) -> Self:
        """The tensor, watched by a call."""
        watched = tensor.as_subclass(cls)
        watched.call = call
        return watched

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        watched = args[0] if args else None
        if not isinstance(watched, cls):
            watched = next((argument for argument in args if isinstance(argument, cls)), None)
        with _as_plain_tensors():
            if watched is None:  # it is deeper in the arguments
                return func(*args, **(kwargs or {}))
            call = watched.call
            if func is F.linear:
                return call.linear(*args, **(kwargs or {}))
            result = func(*args, **(kwargs or {}))
            return cls.of(result, call) if type(result) is torch.Tensor and not call.times else result


class _Watching(TorchFunctionMode):
    """Sees every operation of a call."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (self.call.linear if func is F.linear else func)(*args, **(kwargs or {}))


def _unwatched(result: Any) -> Any:
    """A result in which nothing is watched any more."""
    if isinstance(result, tuple):
        return tuple(map(_unwatched, result)) if any(isinstance(part, _Watched) for part in result) else result
    return result.as_subclass(torch.Tensor) if isinstance(result, _Watched) else result
