"""The representations of a text: which forward pass each takes, and what is read of it; only this table says so.

Sources: MoEE, https://arxiv.org/abs/2410.10814 (`router`, `smoe`, `moee`); SSMoE, https://arxiv.org/abs/2605.30992
(`ev`, `ssmoe`, and `ssmoe-hidden`, which is what the script of the paper's release measures).
"""

from __future__ import annotations

from dataclasses import dataclass

from ssmoe_embed.common.choices import Choice


class Method(Choice):
    """How a text is represented."""

    ROUTER = "router"
    """Router logits of all layers."""
    SMOE = "smoe"
    """The last hidden state; `hidden` is another name for it."""
    MOEE = "moee"
    """The last hidden state joined with the router logits."""
    EV = "ev"
    """Spectral-router logits of all layers."""
    SSMOE = "ssmoe"
    """Under the re-routed forward pass: the last hidden state joined with the mixed routing weights."""
    SSMOE_HIDDEN = "ssmoe-hidden"
    """Under the re-routed forward pass: the last hidden state alone."""

    @classmethod
    def _missing_(cls, value: object) -> Method | None:
        return cls.SMOE if value == "hidden" else None


class RoutingSignal(Choice):
    """What is read off each layer's routers at the pooled token, `E` numbers."""

    LOGITS = "logits"
    """The learned router's logits."""
    SCORES = "scores"
    """The learned router's scores over all experts, before any top-k: its softmax, or its sigmoid."""
    WEIGHTS = "weights"
    """The mixed scores of learned and spectral router over all experts, before any top-k."""
    EV_LOGITS = "ev_logits"
    """The spectral router's logits."""


LEARNED = (RoutingSignal.LOGITS, RoutingSignal.SCORES)
"""Signals that no spectral router has a part in."""


@dataclass(frozen=True)
class Representation:
    """What a method consists of.

    Attributes:
        hidden: Whether the last hidden state is part of it.
        signal: The routing signal that is part of it, if any.
        reroutes: Whether the forward pass is routed by the SSMoE mix.
        signals: What `routing_signal` may put in the place of `signal`.
        meaning: What the vector is, as the rest of a sentence.
    """

    hidden: bool
    signal: RoutingSignal | None
    reroutes: bool = False
    signals: tuple[RoutingSignal, ...] = ()
    meaning: str = ""


_ANY = tuple(RoutingSignal)
_REROUTED = "the hidden state of a forward pass routed by the mix of learned and spectral routers"
REPRESENTATIONS = {
    Method.ROUTER: Representation(
        False, RoutingSignal.LOGITS, signals=LEARNED, meaning="the logits of the learned routers of all layers"
    ),
    Method.SMOE: Representation(True, None, meaning="the hidden state"),
    Method.MOEE: Representation(
        True,
        RoutingSignal.LOGITS,
        signals=_ANY,
        meaning="the hidden state, joined with the logits of the learned routers of all layers",
    ),
    Method.EV: Representation(
        False,
        RoutingSignal.EV_LOGITS,
        signals=(RoutingSignal.EV_LOGITS,),
        meaning="the logits of the spectral routers of all layers",
    ),
    Method.SSMOE: Representation(
        True,
        RoutingSignal.WEIGHTS,
        reroutes=True,
        signals=_ANY,
        meaning=f"{_REROUTED}, joined with the routing weights of all layers",
    ),
    Method.SSMOE_HIDDEN: Representation(True, None, reroutes=True, meaning=_REROUTED),
}
