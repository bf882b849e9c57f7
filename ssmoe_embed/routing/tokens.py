"""Handing the tokens of a forward pass to the routers, which by themselves see hidden states only.

A hook before the model notes the token ids and each token's place in its text, one after it forgets them. Both are
classes, so that the model stays picklable, and what they note belongs to the thread that runs the model.

Two routings need nothing else: the hash and random baselines of SSMoE's table 12 (section D.4,
https://arxiv.org/abs/2605.30992). Both hand the router's own logits of a token, in their own order, to other experts. So the
chosen experts' weights are those that the router would have given, and only *which* experts get them is changed. The
family's own top-k follows; where it adds a correction bias to the scores, that bias has its say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from ssmoe_embed.families import Score

_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Tokens:
    """The tokens of one forward pass, in the order in which the routers see them.

    Attributes:
        ids: Token ids `[N]`.
        positions: How many tokens stand before each one in its own text, `[N]`; padding counts for none.
        real: Which of them are no padding, `[N]`.
        length: `T`, the tokens of each text, padding included.
        continues: Whether earlier tokens of the texts are in a key-value cache.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    real: torch.Tensor
    length: int
    continues: bool = False


_CURRENT: ContextVar[Tokens | None] = ContextVar("ssmoe_embed_tokens", default=None)


def current_tokens(count: int) -> Tokens:
    """The tokens of the forward pass that is running.

    Raises:
        ValueError: They are not known, or are others.
    """
    tokens = _CURRENT.get()
    if tokens is None or len(tokens.ids) != count:
        seen = "no token ids" if tokens is None else f"{len(tokens.ids)} token ids"
        raise ValueError(
            f"Routing by token needs the ids of the {count} tokens that a router sees, and the model was called with "
            f"{seen}. Pass input_ids rather than inputs_embeds, or the images' pixel_values."
        )
    return tokens


def needs_tokens(policy: object) -> bool:
    """Whether a routing policy asks for the tokens."""
    return bool(getattr(policy, "needs_tokens", False))


@contextmanager
def noted(ids: torch.Tensor, mask: torch.Tensor) -> Iterator[None]:
    """Note the tokens `[B,T]`, of which `mask [B,T]` is 1 at the real ones, while the block runs a model."""
    token = _CURRENT.set(_tokens(ids, mask))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def install_token_hooks(modules: Sequence[nn.Module]) -> list[RemovableHandle]:
    """Note the tokens whenever one of the modules is called with token ids."""
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(_Note(), with_kwargs=True))
        handles.append(module.register_forward_hook(_Forget(), always_call=True))
    return handles


class _Note:
    """A forward pre-hook that notes the tokens."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = _parameters(type(module))  # type: ignore[arg-type]  # a class can be hashed
        given = dict(zip(names, args, strict=False)) | kwargs
        ids = given.get("input_ids")
        if isinstance(given.get("pixel_values"), torch.Tensor) and ids is None:
            ids = patch_ids(given["pixel_values"], module.config.patch_size)  # type: ignore[union-attr, arg-type]
        if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 2:
            return  # an inner module that gets embeddings; the outer one has noted the ids
        cache = next((value for value in given.values() if isinstance(value, Cache)), None)  # its name has changed
        _CURRENT.set(_tokens(ids, given.get("attention_mask"), given.get("position_ids"), cache))


def patch_ids(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """An id for each token of an image tower, `[B,1+P]`: 0 for the class token, else from the bits of its pixels.

    They are 32-bit numbers as int64, of pixels `[B,C,h,w]` in patches of `size` pixels along a side.
    """
    bits = pixels.float().contiguous().view(torch.int32).unfold(2, size, size).unfold(3, size, size)
    patches = bits.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).long()  # [B,C,h/p,w/p,p,p] → [B,P,C·p·p]
    factors = (torch.arange(patches.shape[-1], device=pixels.device) * 2654435761 & _BITS) | 1  # Knuth's, odd
    ids = (patches * factors & _BITS).sum(dim=-1) & _BITS  # [B,P]
    return nn.functional.pad(ids, (1, 0))


class _Forget:
    """A forward hook that forgets them, also after an error."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        _CURRENT.set(None)


@lru_cache
def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of what a model's forward takes, in the order in which it is passed by position."""
    return tuple(signature(kind.forward).parameters)[1:]  # without self


def _tokens(ids: torch.Tensor, mask: Any, position_ids: Any = None, cache: Cache | None = None) -> Tokens:
    """The tokens `[B,T]` of a forward pass; their positions are the same with and without a cache and padding."""
    T, past = ids.shape[1], 0 if cache is None else int(cache.get_seq_length())
    positions, real = torch.arange(past, past + T).expand_as(ids), torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:  # [B,past+T]
        positions, real = (mask.long().cumsum(dim=-1) - 1)[:, -T:].clamp_min(0), mask[:, -T:].bool()
    elif isinstance(position_ids, torch.Tensor) and position_ids.ndim == 2:
        positions = position_ids.expand_as(ids)
    positions, real = positions.to(ids.device), real.to(ids.device)
    return Tokens(ids.reshape(-1), positions.reshape(-1), real.reshape(-1), T, past > 0)  # [B,T] → [N]


@dataclass(frozen=True)
class HashRouting:
    """A token's experts follow from its id alone: the same in every text, another choice in every layer."""

    seed: int = 0
    needs_tokens = True  # `reroute` then has the model note them

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`; it fits every model."""

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        tokens = current_tokens(len(logits))
        return dealt(logits, expert_order(self.seed, layer, self.keys(tokens), logits.shape[-1]))

    @staticmethod
    def keys(tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """What the order of experts depends on, `[N]` each."""
        return (tokens.ids,)


@dataclass(frozen=True)
class RandomRouting(HashRouting):
    """A token's experts are drawn anew at every place: they follow from its id and its place in its text.

    They depend on nothing else, so that neighbours in a batch, padding and a key-value cache change nothing.
    """

    @staticmethod
    def keys(tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """See `HashRouting.keys`."""
        return tokens.ids, tokens.positions


def dealt(logits: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Each token's logits `[N,E]`, the largest given to the first expert of its `order [N,E]`, and so on."""
    return torch.empty_like(logits).scatter_(-1, order.to(logits.device), logits.sort(dim=-1, descending=True).values)


def expert_order(seed: int, layer: int, keys: tuple[torch.Tensor, ...], experts: int) -> torch.Tensor:
    """A pseudo-random permutation of the experts for each token, `[N,E]`, the same on every device and version.

    It follows from the seed, the index of the decoder layer and the keys, integers `[N]` each.
    """
    state = torch.full_like(keys[0], seed).long()
    for key in (torch.full_like(keys[0], layer), *keys):
        state = _scrambled(state + key.long() + 0x9E3779B9)
    each = torch.arange(experts, device=state.device)
    draws = _scrambled(_scrambled(state[:, None] ^ _scrambled(each + 1)))  # [N,1] and [E] → [N,E]
    return draws.argsort(dim=-1, stable=True)


def _scrambled(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash, elementwise: xor-shifts and odd multiplications, each of which can be undone."""
    value = value & _BITS
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & _BITS
    return value ^ (value >> 16)
