"""Where a policy meets a model: a site around every router, which asks what the forward pass at hand wants of it.

A site is put around a router once and stays. What is wanted belongs to the caller's context: a policy for this forward pass,
a recording of what enters the router and of its logits, both, or nothing; without either the router's own forward runs at
the price of two look-ups. So nothing has to be put back, and two threads can run one model under two routings. `reroute`
gives a model a policy of its own, for everybody who does not ask for another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from ssmoe_embed.families import MoEFamily, MoELayer, family_of
from ssmoe_embed.routing.interception import intercepted
from ssmoe_embed.routing.policies import RoutingPolicy
from ssmoe_embed.routing.tokens import install_token_hooks, needs_tokens


class Recording:
    """What the routers saw and said in one forward pass, at some of its tokens.

    Attributes:
        rows: Indices among the `N = B·T` tokens, `[R]`.
        inputs: What was multiplied by each router's weight, `[R,H]`, by decoder layer index.
        logits: The learned router's logits, `[R,E]`, by decoder layer index.
        pairs: Under a policy that decides at the experts, tokens and experts `[P]` of all pairs that were computed.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.inputs: dict[int, torch.Tensor] = {}
        self.logits: dict[int, torch.Tensor] = {}
        self.pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


_POLICY: ContextVar[RoutingPolicy | None] = ContextVar("ssmoe_embed_policy")
"""The policy that is asked for, None for the learned routers; while nothing is asked for, the model's own holds."""
_RECORDING: ContextVar[Recording | None] = ContextVar("ssmoe_embed_recording", default=None)
_LOGITS: ContextVar[torch.Tensor | None] = ContextVar("ssmoe_embed_logits", default=None)
"""Of the router that ran last, on their way to a policy that decides at the experts."""


@contextmanager
def routed(policy: RoutingPolicy | None) -> Iterator[None]:
    """Within the block, in this thread, models run under a policy; under None by their learned routers."""
    token = _POLICY.set(policy)
    try:
        yield
    finally:
        _POLICY.reset(token)


@contextmanager
def recording(rows: torch.Tensor) -> Iterator[Recording]:
    """Record what the routers see and say at the rows `[R]` of the `N` tokens while the block runs a model once."""
    current = Recording(rows)
    token = _RECORDING.set(current)
    try:
        yield current
    finally:
        _RECORDING.reset(token)


def install_sites(model: nn.Module, family: MoEFamily) -> list[RouterSite]:
    """The sites of a model's routers, put around those that have none yet."""
    sites = []
    for layer in family.layers(model):
        site = site_of(layer, family)
        layer.router.forward = site
        sites.append(site)
    return sites


def site_of(layer: MoELayer, family: MoEFamily) -> RouterSite:
    """The site around a layer's router, or one that is not put there."""
    own = vars(layer.router).get("forward")
    return own if isinstance(own, RouterSite) else RouterSite(layer, family)


class Site(ABC):
    """What is put around a module's forward; a class, so that the model can be pickled and copied."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shadowed: Callable[..., Any] | None = vars(module).get("forward")  # accelerate puts its own there

    def __call__(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module answers, as the caller's context asks for it."""
        if torch.compiler.is_dynamo_compiling():
            return self._between_graphs(hidden, *args, **kwargs)
        return self.asked(hidden, *args, **kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its context is known at run time only
    def _between_graphs(self, *args: Any, **kwargs: Any) -> Any:
        return self.asked(*args, **kwargs)

    @abstractmethod
    def asked(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """See `__call__`."""

    def own(self, *args: Any, **kwargs: Any) -> Any:
        """The forward that the site is put around."""
        forward = MethodType(type(self.module).forward, self.module) if self.shadowed is None else self.shadowed
        return forward(*args, **kwargs)


class RouterSite(Site):
    """A site around a router.

    Attributes:
        policy: The model's own, if it is re-routed for good.
    """

    def __init__(self, layer: MoELayer, family: MoEFamily) -> None:
        super().__init__(layer.router)
        self.layer, self.family = layer.index, family
        self.policy: RoutingPolicy | None = None

    def asked(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """See `Site`."""
        policy, taken = self.wanted(), _RECORDING.get()
        if policy is None and taken is None:
            return self.own(hidden, *args, **kwargs)
        return self.answer(policy, taken, hidden, *args, **kwargs)

    def wanted(self) -> RoutingPolicy | None:
        """The policy that the caller's context asks for, else the model's own."""
        return _POLICY.get(self.policy)

    @staticmethod
    def taken_logits() -> torch.Tensor:
        """What the router that ran last made of its tokens, `[N,E]`."""
        logits = _LOGITS.get()
        if logits is None:
            raise ValueError("The experts were run without their router, so no policy can decide about them.")
        _LOGITS.set(None)
        return logits

    def note_pairs(self, tokens: torch.Tensor, experts: torch.Tensor) -> None:
        """Record the pairs `[P]` that were computed, if anybody asks."""
        taken = _RECORDING.get()
        if taken is not None:
            taken.pairs[self.layer] = (tokens, experts)

    def own_answer(self, hidden: torch.Tensor, **kwargs: Any) -> tuple[Any, torch.Tensor]:
        """What the learned router answers, and its logits `[N,E]`, whatever the context asks for."""
        taken = Recording(torch.arange(hidden[..., 0].numel()))
        return self.answer(None, taken, hidden, **kwargs), taken.logits[self.layer]

    def answer(
        self, policy: RoutingPolicy | None, taken: Recording | None, hidden: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """What the router answers under a policy, or by its own logits, whatever the context asks for.

        These and what they were made of are recorded in `taken`, if it is given.

        Raises:
            ValueError: The router does not make its logits by one product with its weight.
        """

        def product(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:  # [N,H], [N,E] → [N,E]
            if taken is not None:
                rows = taken.rows.to(x.device)
                taken.inputs[self.layer], taken.logits[self.layer] = x[rows], logits[rows]
            if policy is None:
                return logits
            if getattr(policy, "needs_experts", False):
                _LOGITS.set(logits)
            return policy.logits(self.layer, x, logits, self.family.score)

        weight = partial(self.family.router_weight, self.module)  # asked for late: offloading puts it in place late
        result, times = intercepted(self.own, weight, product, hidden, *args, **kwargs)
        if times != 1:
            raise ValueError(
                f"The router of layer {self.layer} ({type(self.module).__name__}) computed its logits {times} times where "
                "once was expected, so they can be neither read nor replaced; load the model without replaced kernels."
            )
        return result


# --- gradient checkpointing -------------------------------------------------------------------------------------------


def keep_context_in_checkpoints(model: nn.Module) -> None:
    """Let gradient checkpointing run each layer again under the policy, recording and tokens of its first run.

    The second run happens in the backward pass, when the caller's context is another. Call it before a forward pass that
    is trained; it does nothing where checkpointing is off or this was done.
    """
    if not torch.is_grad_enabled():
        return
    for module in model.modules():
        function = vars(module).get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, _InContext):
            vars(module)["_gradient_checkpointing_func"] = _InContext(function, module)


class _InContext:
    """A checkpointing function whose layer keeps its context."""

    def __init__(self, checkpoint: Callable[..., Any], module: nn.Module) -> None:
        self.checkpoint = checkpoint
        own = (vars(part).get("forward") for part in module.modules())
        self.sites = [site for site in own if isinstance(site, RouterSite)]

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        context = copy_context()
        if self.sites:
            context.run(_POLICY.set, self.sites[0].wanted())  # the model's own as it is now, not as it will be
        return self.checkpoint(partial(context.run, function), *args, **kwargs)


class Rerouting(ExitStack):
    """A policy that a model has; see `reroute`."""

    def remove(self) -> None:
        """Give the model its own routing back. Doing so twice does nothing."""
        self.close()


def reroute(model: nn.Module, policy: RoutingPolicy | None) -> Rerouting:
    """Route the tokens of a MoE model by another policy.

    The policy takes effect at once. Used as a context manager it ends with the block; otherwise it stays until
    `.remove()` is called, also through pickling and deep copies of the model. Installing and removing are not safe while
    another thread runs the model.

    Args:
        model: A transformers MoE model, with or without a head.
        policy: For example `SpectralRouting(routers, alpha=0.5)`; None leaves the model as it is.

    Returns:
        A handle with `.remove()`.

    Raises:
        UnsupportedModelError: The model's family has no adapter.
        ValueError: The policy does not fit the model, or the model is re-routed already.
    """
    rerouting = Rerouting()
    if policy is None:
        return rerouting
    family = family_of(model)
    policy.check(model)
    if is_rerouted(model):
        raise ValueError("This model is re-routed already; call .remove() on the earlier reroute(...) first.")
    for site in install_sites(model, family):
        site.policy = policy
        rerouting.callback(setattr, site, "policy", None)
    decoder = family.decoder(model)
    hooks = install_token_hooks(list({model, decoder})) if needs_tokens(policy) else []
    for hook in (*hooks, decoder.register_forward_pre_hook(_BeforeTraining())):
        rerouting.callback(hook.remove)
    return rerouting


class _BeforeTraining:
    """A forward pre-hook: checkpointing may be switched on at any time."""

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        keep_context_in_checkpoints(module)


def is_rerouted(model: nn.Module) -> bool:
    """Whether the model has a routing policy of its own."""
    own = (vars(layer.router).get("forward") for layer in family_of(model).layers(model))
    return any(isinstance(site, RouterSite) and site.policy is not None for site in own)
