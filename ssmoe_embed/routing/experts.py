"""A site around every layer's experts, for policies that decide which (token, expert) pairs are computed.

Replaced logits send every token to the family's own number of experts. Policies that look at what experts answer, or that
give tokens different numbers of experts, decide here instead: a site takes the call that a block makes of its experts and
makes it pair by pair, each as a token with one expert. So the experts' code stays the family's, and the cost is that of the
pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from ssmoe_embed.families import MoEFamily, MoELayer, Score, UnsupportedModelError, family_of
from ssmoe_embed.routing.mixing import scores
from ssmoe_embed.routing.sites import Site, install_sites, site_of

_PROBES = 32
_ALIKE = 0.03
"""Relative spread up to which numbers count as equal in bfloat16."""


@dataclass(frozen=True)
class Weighting:
    """How a router makes weights of scores, told by what it answers to random tokens.

    Attributes:
        best: It chooses the experts with the largest scores, within no groups and without corrections.
        proportional: A token's weights are in the proportion of its scores.
        normalises: They add up to the same for every token.
        scale: What they add up to, or else the factor from score to weight.
    """

    best: bool
    proportional: bool
    normalises: bool
    scale: float


def weighting_of(layer: MoELayer, family: MoEFamily) -> Weighting:
    """How a layer's learned router makes weights of scores.

    Raises:
        UnsupportedModelError: It does not tell experts and weights.
    """
    matrix = family.router_weight(layer.router)  # [E,H]
    noise = torch.randn(_PROBES, 1, matrix.shape[1], generator=torch.Generator().manual_seed(0))
    spread = torch.linspace(0.1, 4, _PROBES)[:, None, None] / matrix.detach().float().norm(dim=1).mean().cpu()
    probes = (noise * spread).to(matrix)  # logits as wide as 0.1 to 4
    site, names = site_of(layer, family), list(signature(type(layer.router).forward).parameters)[2:]
    further = {name: getattr(layer.block, name) for name in names if hasattr(layer.block, name)}  # corrections
    with torch.no_grad():
        try:
            output, logits = site.own_answer(probes[:, 0], **further)
        except (ValueError, IndexError, RuntimeError):  # some routers want three dimensions
            output, logits = site.own_answer(probes, **further)
    _, weights, index = weights_and_choices(output)
    flat, chosen = weights.reshape(_PROBES, -1).float(), index.reshape(_PROBES, -1)  # [B,k]
    p = scores(logits, family.score)  # [B,E]
    factor, total = flat / p.gather(1, chosen), flat.sum(dim=1)
    best = p.topk(chosen.shape[1], dim=1).indices.sort(dim=1).values
    normalises = alike(total, total.mean())
    return Weighting(
        best=torch.equal(best, chosen.sort(dim=1).values),
        proportional=alike(factor, factor.mean(dim=1, keepdim=True)) and (normalises or alike(factor, factor.mean())),
        normalises=normalises,
        scale=float(total.mean() if normalises else factor.mean()),
    )


def weights_and_choices(output: Any) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Position of the weights in a router's output, the weights and the choices, both `[…,k]`.

    Raises:
        UnsupportedModelError: It tells neither.
    """
    parts = [part if isinstance(part, torch.Tensor) else None for part in output] if isinstance(output, tuple) else []
    index = next((part for part in parts if part is not None and not part.is_floating_point()), None)
    for place, part in enumerate(parts):
        fits = place > 0 and part is not None and part.is_floating_point()
        if fits and part is not None and index is not None and part.shape == index.shape:
            return place, part, index
    raise UnsupportedModelError(
        "The routers of this family do not tell which experts they choose with which weights, so these cannot be "
        "weighed otherwise; choose a routing that replaces logits, such as ssmoe or hash; in an ablation, leave the "
        "variants weights-only and choice-only out."
    )


def alike(values: torch.Tensor, centre: torch.Tensor) -> bool:
    """Whether all values are equal to a centre, up to the rounding of bfloat16."""
    return bool(((values - centre).abs() <= _ALIKE * centre.abs()).all())


@dataclass(frozen=True)
class ExpertsCall:
    """What a block asks of its experts, as a policy sees it.

    Attributes:
        hidden: What enters the experts, `[N,H]`.
        logits: The learned router's, `[N,E]`.
        index: The experts that its router chose, `[N,k]`.
        score: The family's score function.
        weighting: How the router makes weights of scores.
        run: What experts `[P]` answer to tokens `[P]`, both given as indices, unweighted `[P,H]`.
    """

    hidden: torch.Tensor
    logits: torch.Tensor
    index: torch.Tensor
    score: Score
    weighting: Weighting
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DecidesAtExperts(ABC):
    """A policy that decides which pairs are computed; it leaves the routers' logits as they are."""

    needs_experts = True
    by_score = False
    """Whether routers must be plain ones, see `check_experts`."""

    @abstractmethod
    def assign(self, call: ExpertsCall) -> tuple[torch.Tensor, torch.Tensor]:
        """Which pairs are computed, `[N,E]` bool, and the weight of each, `[N,E]`."""

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`; also puts sites around the experts, which stay and ask as those of routers do."""
        check_experts(model, by_score=self.by_score)
        family = family_of(model)
        install_sites(model, family)
        for layer in family.layers(model):
            if not isinstance(vars(layer.experts).get("forward"), ExpertsSite):
                layer.experts.forward = ExpertsSite(layer, family)

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`: as they are."""
        return logits


def check_experts(model: nn.Module, *, by_score: bool = False) -> None:
    """Make sure that every layer's experts can be asked pair by pair.

    With `by_score`, also that its routers are plain ones, whose weights are the largest of a softmax.

    Raises:
        UnsupportedModelError: They cannot, or they are not.
    """
    family = family_of(model)
    for layer in family.layers(model):
        names = list(signature(type(layer.experts).forward).parameters)[1:]  # without self
        if len(names) < 3:
            raise UnsupportedModelError(
                f"The experts of layer {layer.index} ({type(layer.experts).__name__}) are not told tokens, experts and "
                "weights, so no single pair can be computed; choose a routing that replaces logits, such as ssmoe or hash."
            )
        found = weighting_of(layer, family)
        if not (found.proportional or (found.normalises and not by_score)):
            raise UnsupportedModelError(
                f"The router of layer {layer.index} weighs experts by more than their scores, so there is no telling what "
                "other pairs would weigh; choose a routing that replaces logits, such as ssmoe or hash."
            )
        if by_score and not (found.best and family.score is Score.SOFTMAX):
            raise UnsupportedModelError(
                f"The router of layer {layer.index} is no plain softmax router: it scores by {family.score}, or chooses "
                "within groups or by corrected scores. USMoE and Expert Choice are defined on the softmax of all experts; "
                "choose another routing, such as ssmoe, competition or steer."
            )


class ExpertsSite(Site):
    """A site around a layer's experts."""

    def __init__(self, layer: MoELayer, family: MoEFamily) -> None:
        super().__init__(layer.experts)
        self.router_site = site_of(layer, family)
        self.weighting = weighting_of(layer, family)

    def asked(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the experts add up to, or what the pairs do that a policy chooses; `args` are choices and weights `[N,k]`."""
        policy: Any = self.router_site.wanted()
        if not getattr(policy, "needs_experts", False):
            return self.own(hidden, *args, **kwargs)
        index, weights = (*args, *kwargs.values())
        flat = hidden.reshape(-1, hidden.shape[-1])  # [N,H]

        def run(tokens: torch.Tensor, experts: torch.Tensor, each: torch.Tensor | None = None) -> torch.Tensor:
            one = torch.ones_like(tokens, dtype=weights.dtype) if each is None else each.to(weights.dtype)
            found: torch.Tensor = self.own(flat[tokens], experts[:, None].to(index.dtype), one[:, None])  # [P] → [P,1]
            return found.reshape(len(tokens), -1)

        logits = self.router_site.taken_logits()
        chosen, score = index.reshape(len(flat), -1).long(), self.router_site.family.score
        kept, wanted = policy.assign(ExpertsCall(flat, logits, chosen, score, self.weighting, run))
        tokens, experts = kept.nonzero(as_tuple=True)
        self.router_site.note_pairs(tokens, experts)
        answers = run(tokens, experts, wanted[tokens, experts])
        summed = answers.new_zeros(len(flat), answers.shape[-1]).index_add(0, tokens, answers)
        return summed.reshape(*hidden.shape[:-1], -1)
