"""Routings that choose (token, expert) pairs, so that tokens may get different numbers of experts.

USMoE, https://arxiv.org/abs/2503.22996: the best pairs of the whole matrix of tokens and experts, by a score to which both
sides contribute. Expert Choice, https://arxiv.org/abs/2202.09368: each expert takes its best tokens. In both, padding takes
no part and a text has a budget of its own, its tokens times k: its vector does not depend on its neighbours, unlike in the
release of USMoE.

Competition: the experts that answer a token most strongly are chosen, which takes all their answers. CompeteSMoE,
https://arxiv.org/abs/2505.13380 (mean softplus of the answer), and its first version, https://arxiv.org/abs/2402.02526 (norm
of the answer). The authors train routers to foresee the competition and route by the routers; routing a model that was
trained otherwise by the competition itself is our reading of it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.routing.experts import DecidesAtExperts, ExpertsCall
from ssmoe_embed.routing.tokens import current_tokens


@dataclass(frozen=True)
class _Paired(DecidesAtExperts):
    """What both have in common.

    Attributes:
        causal: A token's pairs compete with those of the tokens before it only, for the budget of its text so far.

    Raises:
        ValueError: A value is not allowed.
    """

    causal: bool = False
    by_score = True

    @property
    def needs_tokens(self) -> bool:
        """Whether texts and padding must be known."""
        return True

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        head = None
        with suppress(NotImplementedError):  # of a class of transformers that does not say which layer is its head
            head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None:
            self.check_causal()
        super().check(model)

    def check_causal(self) -> None:
        """Make sure that a language model may use it.

        Raises:
            ValueError: Later tokens of a text decide about earlier ones.
        """
        if self.needs_tokens and not self.causal:
            raise ValueError(
                f"{type(self).__name__} lets later tokens of a text decide about earlier ones, so a language model would "
                "know what it is to predict. Set causal=true, by which each token competes with those before it only."
            )

    def texts(self, call: ExpertsCall) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are no padding, `[B,T]`, and how many of its text's share each one's budget, `[B,T]` or `[B,1]`.

        Raises:
            ValueError: The tokens are not known, or the text's beginning is not among them.
        """
        tokens = current_tokens(len(call.hidden))
        if tokens.continues:
            raise ValueError(
                "The beginning of these texts is in a key-value cache, and the scores of its pairs are not. Run whole "
                "texts: generate(..., use_cache=False)."
            )
        real = tokens.real.view(-1, tokens.length)
        return real, tokens.positions.view_as(real) + 1 if self.causal else real.sum(dim=1, keepdim=True)


class Total(Choice):
    """What a token's weights are divided by in a family that normalises them."""

    ALL = "all"
    """Its scores of all experts, as in the authors' code, whose models do not normalise: few pairs then weigh little."""
    KEPT = "kept"
    """Its scores of the pairs that are computed, so that they add up to what they do in the family."""


@dataclass(frozen=True)
class UnifiedRouting(_Paired):
    """USMoE: the best pairs by `u = (1-rate)·softmax(r) + rate·(2/E)·sigmoid(r)`, which is their weight too.

    Attributes:
        rate: Share of the expert side, which compares tokens with each other; the authors' is 0.5.
        budget: Pairs that are computed, as a share of the text's tokens times k; the authors' release has 1.
        causal: See `_Paired`.
        per_token: A control: the k best of each token, as ever, with these weights.
        total: See `Total`.
    """

    rate: float = 0.5
    budget: float = 1.0
    per_token: bool = False
    total: Total = Total.ALL

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", Total.parse(self.total, "total"))
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate={self.rate!r} is outside [0, 1]; the authors' is 0.5.")
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget={self.budget!r} is outside (0, 1]; 1 computes as many pairs as the model itself.")

    @property
    def needs_tokens(self) -> bool:
        """Whether texts and padding must be known."""
        return not self.per_token

    def assign(self, call: ExpertsCall) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DecidesAtExperts.assign`."""
        z, E = call.logits.float(), call.logits.shape[-1]
        u = (1 - self.rate) * z.softmax(dim=-1) + self.rate * (2 / E) * z.sigmoid()  # [N,E]
        if self.per_token:
            kept = torch.zeros_like(u, dtype=torch.bool).scatter_(1, call.index, value=True)
        else:
            real, seen = self.texts(call)
            budget = (self.budget * call.index.shape[1] * seen).floor().clamp_min(1)
            rank = places(u.view(*real.shape, E), real, causal=self.causal)  # [N,E] → [B,T,E]
            kept = ((rank < budget[..., None]) & real[..., None]).view(-1, E)
        if call.weighting.normalises:
            total = (u * kept if self.total is Total.KEPT else u).sum(dim=-1, keepdim=True)
            u = u / total.clamp_min(torch.finfo(u.dtype).tiny)
        return kept, call.weighting.scale * u


@dataclass(frozen=True)
class ExpertChoice(_Paired):
    """Each expert takes its best tokens of a text by their softmax, `T·k/E` of them, rounded, and at least one."""

    def assign(self, call: ExpertsCall) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DecidesAtExperts.assign`."""
        p, E = call.logits.float().softmax(dim=-1), call.logits.shape[-1]  # [N,E]
        real, seen = self.texts(call)
        columns = p.view(*real.shape, E).transpose(1, 2).flatten(0, 1)[..., None]  # [N,E] → [B,E,T] → [B·E,T,1]
        rank = places(columns, real.repeat_interleave(E, dim=0), causal=self.causal)
        rank = rank.view(-1, E, real.shape[1]).transpose(1, 2)  # [B·E,T,1] → [B,T,E]
        capacity = (seen * call.index.shape[1] / E).round().clamp_min(1)
        kept = ((rank < capacity[..., None]) & real[..., None]).reshape(-1, E)
        weights = p * kept
        if call.weighting.normalises:
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        return kept, call.weighting.scale * weights


def places(values: torch.Tensor, real: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """How many pairs of its text come before each pair: those of larger value, and of equal value if they stand first.

    Args:
        values: `[B,T,E]`.
        real: Which tokens are no padding, `[B,T]`.
        causal: Count only pairs of the token itself and of those before it.

    Returns:
        `[B,T,E]`, of no meaning at padding.
    """
    B, T, E = values.shape
    values = values.masked_fill(~real[..., None], -torch.inf)
    if not causal:
        order = values.view(B, T * E).argsort(dim=-1, descending=True, stable=True)
        return _inverse(order).view(B, T, E)
    size, padded = 1, 1 << (T - 1).bit_length()
    values = nn.functional.pad(values, (0, 0, 0, padded - T), value=-torch.inf)  # [B,T',E]
    rank = _inverse(values.argsort(dim=-1, descending=True, stable=True))
    while size < padded:  # each run of `size` tokens is compared with the run before it, as in a merge sort
        runs = values.view(B, -1, 2, size * E)
        earlier = runs[:, :, 0].sort(dim=-1).values
        larger = size * E - torch.searchsorted(earlier, runs[:, :, 1].contiguous())
        rank.view(B, -1, 2, size * E)[:, :, 1] += larger
        size *= 2
    return rank[:, :T]


def _inverse(order: torch.Tensor) -> torch.Tensor:
    """The place of each item in orders along the last dimension."""
    numbers = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, numbers)


class Response(Choice):
    """How strong an expert's answer is."""

    SOFTPLUS = "softplus"
    """The mean of its softplus; weights are the chosen ones' shares of their sum."""
    NORM = "norm"
    """Its Euclidean norm; weights are the softmax of the chosen ones' norms."""


@dataclass(frozen=True)
class Competition(DecidesAtExperts):
    """The experts with the strongest answers, weighed by them.

    Attributes:
        response: How strong an answer is.
    """

    response: Response = Response.SOFTPLUS

    def __post_init__(self) -> None:
        object.__setattr__(self, "response", Response.parse(self.response, "response"))

    def assign(self, call: ExpertsCall) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DecidesAtExperts.assign`."""
        N, E = call.logits.shape
        tokens, norm = torch.arange(N, device=call.hidden.device), self.response is Response.NORM
        strengths = []
        for expert in range(E):
            answers = call.run(tokens, torch.full_like(tokens, expert)).float()  # [N,H]
            strengths.append(answers.norm(dim=1) if norm else F.softplus(answers).mean(dim=1))
        found = torch.stack(strengths, dim=1)  # [N,E]
        best = found.topk(call.index.shape[1], dim=1)  # [N,k]
        shares = best.values.softmax(dim=1) if norm else best.values / best.values.sum(dim=1, keepdim=True)
        kept = torch.zeros_like(found, dtype=torch.bool).scatter_(1, best.indices, value=True)
        return kept, torch.zeros_like(found).scatter_(1, best.indices, call.weighting.scale * shares)
