"""The five representations of a text, and which forward pass and which routing signal each takes.

Sources: MoEE, https://arxiv.org/abs/2410.10814 (`router`, `smoe`, `moee`); SSMoE, https://arxiv.org/abs/2605.30992
(`ev`, `ssmoe`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ssmoe_embed.common.choices import Choice


class Method(Choice):
    """How a text is represented."""

    ROUTER = "router"
    """Router logits of all layers."""
    SMOE = "smoe"
    """The last hidden state."""
    MOEE = "moee"
    """The last hidden state joined with the router logits."""
    EV = "ev"
    """Spectral-router logits of all layers."""
    SSMOE = "ssmoe"
    """Under the re-routed forward pass: the last hidden state joined with the mixed routing weights."""


class RoutingSignal(Choice):
    """What is read off a layer's routers at the pooled token, `E` numbers."""

    LOGITS = "logits"
    """The learned router's logits."""
    WEIGHTS = "weights"
    """The mixed scores of learned and spectral router over all experts, before any top-k."""
    EV_LOGITS = "ev_logits"
    """The spectral router's logits."""


@dataclass(frozen=True)
class Representation:
    """What a method consists of."""

    hidden: bool
    """Whether the last hidden state is part of it."""
    signal: RoutingSignal | None
    """The routing signal that is part of it, if any."""
    reroutes: bool = False
    """Whether the forward pass itself is routed by the SSMoE mix."""


REPRESENTATIONS = {
    Method.ROUTER: Representation(hidden=False, signal=RoutingSignal.LOGITS),
    Method.SMOE: Representation(hidden=True, signal=None),
    Method.MOEE: Representation(hidden=True, signal=RoutingSignal.LOGITS),
    Method.EV: Representation(hidden=False, signal=RoutingSignal.EV_LOGITS),
    Method.SSMOE: Representation(hidden=True, signal=RoutingSignal.WEIGHTS, reroutes=True),
}
