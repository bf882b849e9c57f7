"""Installing a routing policy on a live model, for a `with` block or for good."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, TracebackType
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from ssmoe_embed.families import MoEFamily, MoELayer, family_of
from ssmoe_embed.routing.interception import intercepted
from ssmoe_embed.routing.policies import RoutingPolicy
from ssmoe_embed.routing.token_policies import TokenPolicy
from ssmoe_embed.routing.tokens import install_token_hooks


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
    """Whether a routing policy is installed on the model."""
    return any(isinstance(layer.router.forward, _PolicyForward) for layer in family_of(model).layers(model))


def decision(layer: MoELayer, policy: RoutingPolicy, family: MoEFamily, *args: Any, **kwargs: Any) -> Any:
    """What a layer's router would answer under a policy, without installing it and without running any hook.

    Args:
        layer: The layer.
        policy: The policy.
        family: The model's family.
        *args: What the router was called with.
        **kwargs: Likewise.
    """
    return _PolicyForward(layer.router, None, layer.index, policy, family)(*args, **kwargs)


class Rerouting:
    """A policy installed on a model; see `reroute`."""

    def __init__(self, model: nn.Module, policy: RoutingPolicy) -> None:
        family = family_of(model)
        policy.check(model)
        layers = family.layers(model)
        if is_rerouted(model):
            raise ValueError("This model is re-routed already; call .remove() on the earlier reroute(...) first.")
        self._routers: list[nn.Module] = []
        for layer in layers:
            shadowed = vars(layer.router).get("forward")  # accelerate puts its own there
            layer.router.forward = _PolicyForward(layer.router, shadowed, layer.index, policy, family)
            self._routers.append(layer.router)
        needs_tokens = isinstance(policy, TokenPolicy) and policy.needs_tokens
        self._hooks = install_token_hooks(list({model, family.decoder(model)})) if needs_tokens else []

    def remove(self) -> None:
        """Give the model its own routing back. Doing so twice does nothing."""
        while self._routers:
            router = self._routers.pop()
            forward: _PolicyForward = vars(router).pop("forward")
            if forward.shadowed is not None:
                router.forward = forward.shadowed
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class _PolicyForward:
    """A router's forward with its logits replaced: a class, so that the model stays picklable."""

    def __init__(
        self,
        router: nn.Module,
        shadowed: Callable[..., Any] | None,
        layer: int,
        policy: RoutingPolicy,
        family: MoEFamily,
    ) -> None:
        self.router = router
        self.shadowed = shadowed
        self.layer = layer
        self.policy = policy
        self.family = family

    def __call__(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        forward = MethodType(type(self.router).forward, self.router) if self.shadowed is None else self.shadowed
        result, times = intercepted(forward, self._weight, self._logits, hidden, *args, **kwargs)
        if times != 1:
            raise ValueError(
                f"The router of layer {self.layer} ({type(self.router).__name__}) computed its logits {times} "
                "times where once was expected, so it cannot be re-routed; load the model without replaced kernels."
            )
        return result

    def _weight(self) -> torch.Tensor:
        """The router's weight as it is now: offloading puts it in place late."""
        return self.family.router_weight(self.router)

    def _logits(self, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The policy's logits for `hidden [N,H]` and the router's own `[N,E]`."""
        return self.policy.logits(self.layer, hidden, logits, self.family.score)
