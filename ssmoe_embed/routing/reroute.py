"""Giving a live model a routing policy, for a `with` block or for good."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from ssmoe_embed.families import MoELayer, family_of
from ssmoe_embed.routing.policies import RoutingPolicy
from ssmoe_embed.routing.sites import RouterSite, install_sites, keep_context_in_checkpoints
from ssmoe_embed.routing.tokens import install_token_hooks, needs_tokens


def reroute(model: nn.Module, policy: RoutingPolicy) -> Rerouting:
    """Route the tokens of a MoE model by another policy.

    The policy takes effect at once. Used as a context manager it ends with the block; otherwise it stays until
    `.remove()` is called, also through pickling and deep copies of the model. Installing and removing are not safe while
    another thread runs the model.

    Args:
        model: A transformers MoE model, with or without a head.
        policy: For example `SpectralRouting(routers, alpha=0.5)`.

    Returns:
        A handle with `.remove()`.

    Raises:
        UnsupportedModelError: The model's family has no adapter.
        ValueError: The policy does not fit the model, or the model is re-routed already.
    """
    return Rerouting(model, policy)


def is_rerouted(model: nn.Module) -> bool:
    """Whether the model has a routing policy of its own."""
    own = (vars(layer.router).get("forward") for layer in family_of(model).layers(model))
    return any(isinstance(site, RouterSite) and site.policy is not None for site in own)


def decision(layer: MoELayer, policy: RoutingPolicy, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a layer's router would answer under a policy, without running any hook.

    Args:
        layer: The layer.
        policy: The policy.
        model: The model that the layer is of.
        *args: What the router was called with.
        **kwargs: Likewise.
    """
    own = vars(layer.router).get("forward")
    site = own if isinstance(own, RouterSite) else RouterSite(layer, family_of(model))
    return site.answer(policy, None, *args, **kwargs)


class Rerouting:
    """A policy that a model has; see `reroute`."""

    def __init__(self, model: nn.Module, policy: RoutingPolicy) -> None:
        family = family_of(model)
        policy.check(model)
        if is_rerouted(model):
            raise ValueError("This model is re-routed already; call .remove() on the earlier reroute(...) first.")
        self._sites = install_sites(model, family)
        for site in self._sites:
            site.policy = policy
        decoder = family.decoder(model)
        self._hooks = install_token_hooks(list({model, decoder})) if needs_tokens(policy) else []
        self._hooks.append(decoder.register_forward_pre_hook(_BeforeTraining()))

    def remove(self) -> None:
        """Give the model its own routing back. Doing so twice does nothing."""
        while self._sites:
            self._sites.pop().policy = None
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class _BeforeTraining:
    """A forward pre-hook: checkpointing may be switched on at any time."""

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        keep_context_in_checkpoints(module)
