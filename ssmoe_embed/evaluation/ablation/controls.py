"""Letting only half of a re-routing take effect: the experts it chooses, or the weights it gives them.

Where a router's mix is nearly flat, it keeps most of the learned router's choices and changes above all their weights. The
two controls take the effect apart: `weights` keeps the learned router's choice, `choice` keeps its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import MoEFamily, MoELayer, family_of
from ssmoe_embed.routing import SpectralRouting
from ssmoe_embed.routing.experts import alike, weighting_of, weights_and_choices
from ssmoe_embed.routing.interception import intercepted
from ssmoe_embed.routing.mixing import mixed_scores, scores


class Control(Choice):
    """What of a re-routing takes effect."""

    WEIGHTS = "weights"
    """The weights only: the learned router's own choice, weighted by the mixed scores."""
    CHOICE = "choice"
    """The choice only: the mix's choice, weighted by the learned router's scores."""


@contextmanager
def controlled(model: nn.Module, policy: SpectralRouting, control: Control | None) -> Iterator[None]:
    """Within the block, let only part of a re-routing take effect; the model is re-routed by the caller or not at all.

    Args:
        model: The model.
        policy: The re-routing.
        control: Which part; None for all of it.

    Raises:
        ValueError: The family's routers do not tell choices and weights, or weights are not scores there.
    """
    if control is None:
        yield
        return
    family = family_of(model)
    handles = [
        layer.router.register_forward_hook(_Controlled(layer, family, policy, control), with_kwargs=True)
        for layer in family.layers(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Controlled:
    """A forward hook that gives the choice of one routing the weights of the other."""

    def __init__(self, layer: MoELayer, family: MoEFamily, policy: SpectralRouting, control: Control) -> None:
        self.layer, self.family, self.policy, self.control = layer, family, policy, control
        self.normalises = weighting_of(layer, family).normalises

    def __call__(self, router: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        made: list[tuple[torch.Tensor, torch.Tensor]] = []

        def seen(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:  # [N,H], [N,E]
            made.append((x, logits))
            return logits

        forward = MethodType(type(router).forward, router)  # of the learned router, whatever is installed
        own_output, _ = intercepted(forward, lambda: self.family.router_weight(router), seen, *args, **kwargs)
        [(hidden, learned)] = made
        spectral = self.policy.routers.logits(self.layer.index, hidden)
        own = scores(learned, self.family.score)  # [N,E]
        mixed = mixed_scores(learned, spectral, self.policy.alpha, self.policy.mix, self.family.score)
        if self.control is Control.WEIGHTS:
            return self._reweighted(own_output, before=own, after=mixed)
        return self._reweighted(output, before=mixed, after=own)

    def _reweighted(self, output: Any, *, before: torch.Tensor, after: torch.Tensor) -> Any:
        """A router's output with weights that follow `after` where they followed `before`; both `[N,E]`."""
        place, weights, index = weights_and_choices(output)
        flat, chosen = weights.reshape(-1, weights.shape[-1]).float(), index.reshape(-1, index.shape[-1])  # [N,k]
        factor = flat / before.gather(1, chosen)  # [N,k]
        if not alike(factor, factor.mean(dim=1, keepdim=True)):
            raise ValueError(
                "The weights of this family's experts are not in the proportion of their scores, so there is no telling "
                "what another mix would weigh them; leave the variants weights-only and choice-only out."
            )
        made = factor * after.gather(1, chosen)
        if self.normalises:
            made = made * flat.sum(dim=1, keepdim=True) / made.sum(dim=1, keepdim=True)
        return tuple(
            made.reshape(weights.shape).to(weights.dtype) if i == place else part for i, part in enumerate(output)
        )
