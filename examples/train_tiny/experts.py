"""The experts of one layer as a single differentiable step, fast on a CPU.

The tokens are sorted by expert, every expert multiplies its own contiguous slice, and nothing is padded. Gradients are
written by hand, because autograd's backward of the gathers (an `index_add`) is slow on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 64
"""Experts' rows are multiplied in multiples of this many: the library compiles a kernel for every new shape in bfloat16,
which takes ten times as long as running it."""


def _rounded(count: int) -> int:
    return -(-count // ROWS) * ROWS


def _slices(ends: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield each used expert with its rows, and where a window of rounded size that holds them begins."""
    for expert, (start, end) in enumerate(pairwise([0, *ends])):
        if end > start:
            yield expert, start, end, max(0, min(start, ends[-1] - _rounded(end - start)))


def _per_expert(a: Tensor, b: Tensor, ends: list[int]) -> Tensor:
    """Multiply each expert's rows of `a` `[S,X]` by its matrix in `b` `[E,X,Y]`: `[S,Y]`."""
    out = a.new_empty(a.shape[0], b.shape[-1])
    for expert, start, end, begin in _slices(ends):
        window = slice(begin, begin + _rounded(end - start))
        if begin == start:
            torch.mm(a[window], b[expert], out=out[window])  # what is too much is overwritten by the next expert
        else:
            out[start:end] = torch.mm(a[window], b[expert])[start - begin : end - begin]
    return out


def _outer_per_expert(a: Tensor, b: Tensor, ends: list[int]) -> Tensor:
    """Sum the outer products of each expert's rows of `a` `[S,X]` and `b` `[S,Y]`: `[E,X,Y]`."""
    out = a.new_zeros(len(ends), a.shape[1], b.shape[1])
    padded = b.new_zeros(max((_rounded(end - start) for _, start, end, _ in _slices(ends)), default=0), b.shape[1])
    for expert, start, end, begin in _slices(ends):
        own = padded[: min(_rounded(end - start), a.shape[0])].zero_()
        own[start - begin : end - begin] = b[start:end]
        torch.mm(a[begin : begin + len(own)].t(), own, out=out[expert])
    return out


def _sum_choices(rows: Tensor, k: int) -> Tensor:
    """Add the `k` rows of each token: `[N·k,H]` → `[N,H]`; plain additions are faster than a sum over a middle axis."""
    return reduce(torch.add, rows.view(-1, k, rows.shape[1]).unbind(1))


class SortedExperts(torch.autograd.Function):
    """`y_n = Σ_k weight_nk · down_e(silu(gate_e x_n) · up_e x_n)` over the chosen experts `e = index_nk`."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes everything by position
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor
    ) -> Tensor:
        """Run the experts.

        Args:
            ctx: autograd's context.
            x: `[N,H]`.
            gate_up: `[E,2I,H]`, gate rows first.
            down: `[E,H,I]`.
            index: `[N,k]` chosen experts.
            weight: `[N,k]` their weights.

        Returns:
            `[N,H]`.
        """
        N, k = index.shape
        flat = index.reshape(-1)  # [N·k]
        order = torch.argsort(flat, stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        ends = torch.bincount(flat, minlength=gate_up.shape[0]).cumsum(0).tolist()
        token = order // k
        xs = x.index_select(0, token)  # [S,H], S = N·k
        ws = weight.reshape(-1).index_select(0, order).unsqueeze(1).to(x.dtype)  # [S,1]
        both = _per_expert(xs, gate_up.transpose(1, 2), ends)  # [S,2I]
        gate, up = (half.contiguous() for half in both.chunk(2, dim=1))  # contiguous halves: 2.5 times faster below
        act = functional.silu(gate) * up  # [S,I]
        ys = _per_expert(act * ws, down.transpose(1, 2), ends)  # [S,H]
        ctx.save_for_backward(xs, ws, gate, up, act, gate_up, down, inverse, token)
        ctx.ends, ctx.shape = ends, (N, k)
        return _sum_choices(ys.index_select(0, inverse), k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        """Return the gradients of `x`, `gate_up`, `down` and `weight`."""
        xs, ws, gate, up, act, gate_up, down, inverse, token = ctx.saved_tensors
        ends, (N, k) = ctx.ends, ctx.shape
        gys = grads[0].to(xs.dtype).index_select(0, token)  # [S,H]
        g_down = _outer_per_expert(gys, act * ws, ends)
        g_scaled = _per_expert(gys, down, ends)  # [S,I]
        g_weight = (g_scaled * act).sum(1, dtype=torch.float32).index_select(0, inverse).view(N, k)
        g_act = g_scaled * ws
        g_gate_up = torch.cat((torch.ops.aten.silu_backward(g_act * up, gate), g_act * functional.silu(gate)), dim=1)
        gx = _sum_choices(_per_expert(g_gate_up, gate_up, ends).index_select(0, inverse), k)
        return gx, _outer_per_expert(g_gate_up, xs, ends), g_down, None, g_weight
