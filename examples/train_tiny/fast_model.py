"""A training-time forward pass of `OlmoeForCausalLM` over packed rows, several times faster on a CPU.

It reads the parameters of the library's own model, so that nothing has to be converted for saving, and computes the
same function (a test compares them). Several texts share one row; the attention mask keeps them apart, and rotary
positions count from the row's start, which changes nothing because they are relative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from experts import SortedExperts
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Output:
    """What one forward pass returns.

    Attributes:
        hidden: `[N,H]` final hidden states (after the last norm), float32.
        router_logits: per layer `[N,E]`, float32.
        chosen: per layer `[N,k]` experts.
    """

    hidden: Tensor
    router_logits: list[Tensor]
    chosen: list[Tensor]


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one length, as a slice of the flat tokens; short rows make attention cheap."""

    rows: int
    length: int

    @property
    def size(self) -> int:
        """The number of tokens."""
        return self.rows * self.length


def packed_mask(segments: Tensor, block: Block) -> Tensor:
    """Let each position see itself and what precedes it in its own text: `[R·T]` → bool `[R,1,T,T]`."""
    segments = segments.view(block.rows, block.length)
    same = segments.unsqueeze(2) == segments.unsqueeze(1)  # [R,T,T]
    return torch.zeros_like(same, dtype=torch.float32).masked_fill(~same.tril(), -1e30).unsqueeze(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm in float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to `[N,heads,D]`."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos + turned * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention by plain products: the library's fused backward is several times slower in bfloat16 on a CPU."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # [R,heads,T,T]
    return torch.softmax(scores + mask, -1, dtype=torch.float32).to(v.dtype) @ v


class FastOlmoe:
    """The fast forward pass over the parameters of an `OlmoeForCausalLM`.

    Args:
        model: the library's model; its parameters stay the float32 master copy.
        dtype: what the matrix products are computed in.
        compiled: fuse norms, rotations and softmax by `torch.compile`, which needs a C++ compiler; a quarter faster.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.bfloat16, *, compiled: bool = False) -> None:
        self.model = model
        self.config = model.config
        self.dtype = dtype
        fused: Any = torch.compile if compiled else lambda function: function
        self.norm, self.mix, self.attention_inputs = fused(rms_norm), fused(attend), fused(self._attention_inputs)

    def rotary(self, layout: tuple[Block, ...]) -> tuple[Tensor, Tensor]:
        """Return cos and sin, `[N,1,D]`."""
        frequencies = self.model.model.rotary_emb.inv_freq
        position = torch.cat([torch.arange(block.length).repeat(block.rows) for block in layout])  # [N]
        angles = position.float()[:, None, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _attention_inputs(self, x: Tensor, layer: Any, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, `[N,heads,D]`."""
        attention, eps = layer.self_attn, self.config.rms_norm_eps
        h = rms_norm(x, layer.input_layernorm.weight, eps).to(self.dtype)  # [N,H]
        shape = (x.shape[0], self.config.num_attention_heads, -1)
        q = rms_norm(self._linear(h, attention.q_proj.weight), attention.q_norm.weight, eps).to(self.dtype)
        k = rms_norm(self._linear(h, attention.k_proj.weight), attention.k_norm.weight, eps).to(self.dtype)
        v = self._linear(h, attention.v_proj.weight)
        q, k, v = (t.view(shape) for t in (q, k, v))  # [N,H] → [N,heads,D]
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _attend(self, qkv: tuple[Tensor, ...], layout: tuple[Block, ...], masks: list[Tensor]) -> Tensor:
        """Attend within each text: three times `[N,heads,D]` → `[N,H]`."""
        sizes = [block.size for block in layout]
        parts = []
        for block, mask, *flat in zip(layout, masks, *(torch.split(t, sizes) for t in qkv), strict=True):
            rows = (t.view(block.rows, block.length, *t.shape[1:]) for t in flat)
            q, k, v = (t.transpose(1, 2) for t in rows)  # [R,T,heads,D] → [R,heads,T,D]
            mixed = self.mix(q, k, v, mask)
            parts.append(mixed.transpose(1, 2).reshape(block.size, -1))  # → [R·T,H]
        return torch.cat(parts)

    def _route(self, x: Tensor, layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the experts' input, the router logits, the chosen experts and their weights."""
        h = self.norm(x, layer.post_attention_layernorm.weight, self.config.rms_norm_eps)
        logits = functional.linear(h, layer.mlp.gate.weight)  # [N,E]; float32, because a near tie decides the experts
        weight, index = torch.softmax(logits, -1).topk(self.config.num_experts_per_tok, -1)  # [N,k]
        if self.config.norm_topk_prob:
            weight = weight / weight.sum(-1, keepdim=True)
        return h.to(self.dtype), logits, index, weight

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight.to(self.dtype))

    def forward(self, ids: Tensor, segments: Tensor, layout: tuple[Block, ...]) -> Output:
        """Run the model on packed rows.

        Args:
            ids: `[N]` token ids, row after row.
            segments: `[N]` which text of its row each token belongs to.
            layout: the rows, whose sizes add up to `N`.
        """
        masks = [
            packed_mask(part, block)
            for part, block in zip(torch.split(segments, [block.size for block in layout]), layout, strict=True)
        ]
        cos, sin = self.rotary(layout)
        base = self.model.model
        x = functional.embedding(ids, base.embed_tokens.weight)  # [N,H]
        logits, chosen = [], []
        for layer in base.layers:
            mixed = self._attend(self.attention_inputs(x, layer, cos, sin), layout, masks)
            x = x + self._linear(mixed, layer.self_attn.o_proj.weight)
            h, router_logits, index, weight = self._route(x, layer)
            experts = layer.mlp.experts
            gate_up, down = experts.gate_up_proj.to(self.dtype), experts.down_proj.to(self.dtype)
            x = x + SortedExperts.apply(h, gate_up, down, index, weight)  # type: ignore[no-untyped-call]
            logits.append(router_logits)
            chosen.append(index)
        return Output(self.norm(x, base.norm.weight, self.config.rms_norm_eps), logits, chosen)

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary for hidden states `[M,H]`: `[M,V]` float32."""
        return self._linear(hidden.to(self.dtype), self.model.lm_head.weight).float()
