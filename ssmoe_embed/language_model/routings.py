"""The routings of a language model by name, as the paper's tables 1, 5 and 12 compare them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.routing import HashRouting, Mix, RandomRouting, RoutingPolicy, SpectralRouting
from ssmoe_embed.routing.mixing import checked_alpha
from ssmoe_embed.routing.named import NAMED, canonical, check_causal, is_named, policy_named
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings

ROUTERS_FILE = "ssmoe_routers.safetensors"
"""Spectral routers beside a checkpoint; those in a folder that `ssmoe drop` made are the whole model's, sliced."""


class Routing(Choice):
    """How tokens find their experts; beside these there are those of `routing/named.py`."""

    ORIGINAL = "original"
    """As the model's own routers say."""
    SSMOE = "ssmoe"
    """Learned and spectral scores mixed."""
    EV = "ev"
    """The spectral routers alone."""
    AVERAGE_EV = "average-ev"
    """Spectral routers made without the learned ones, alone (the paper's router-free variant, table 5)."""
    RANDOM = "random"
    """Experts drawn anew for each token."""
    HASH = "hash"
    """Experts by token id."""


@dataclass(frozen=True)
class RoutingSettings:
    """What the named routings leave open.

    Attributes:
        alpha: The spectral router's share in `ssmoe`.
        mix: Mix the scores or the logits in `ssmoe`.
        top_c: Eigenvectors kept of each expert matrix, a count or a fraction.
        scale: Length of the spectral routers' rows, see `Scale`.
        seed: Of `random` and `hash`.

    Raises:
        ValueError: A value is not allowed.
    """

    alpha: float = 0.5
    mix: Mix = Mix.PROBS
    top_c: int | float = 50
    scale: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checked_alpha(self.alpha))
        object.__setattr__(self, "mix", Mix.parse(self.mix, "mix"))
        object.__setattr__(self, "top_c", self.spectral().top_c)

    def spectral(self, routing: str = Routing.SSMOE) -> SpectralSettings:
        """The settings of the spectral routers that a routing uses."""
        if routing == Routing.AVERAGE_EV:
            return SpectralSettings(self.top_c, "average", "canonical", self.scale)  # type: ignore[arg-type]
        return SpectralSettings(self.top_c, scale=self.scale)  # type: ignore[arg-type]  # parsed there

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self) | {"mix": str(self.mix)}


ROUTINGS = [*map(str, Routing), *(name for name in NAMED if name not in list(Routing))]
"""The names of all routings."""


def parse_routing(routing: str) -> str:
    """A routing's name, with the settings that are written after it, see `routing/named.py`.

    Raises:
        FileNotFoundError: A file that it names does not exist.
        ValueError: The name or a setting is not known, a value is not allowed, or later tokens would decide about earlier
            ones.
    """
    if routing in list(Routing):
        return Routing(routing)
    if not is_named(routing):
        raise ValueError(unknown("routing", routing, ROUTINGS))
    check_causal(routing)
    return canonical(routing)


def policy_of(
    routing: str,
    model: PreTrainedModel,
    settings: RoutingSettings | None = None,
    *,
    routers: SpectralRouters | None = None,
    progress: bool = True,
) -> RoutingPolicy | None:
    """The policy that a routing's name means; None for the model's own.

    Args:
        routing: The name, see `parse_routing`.
        model: The model, from whose experts the spectral routers are made where they are needed and not given.
        settings: What the name leaves open.
        routers: Spectral routers to use.
        progress: Show a progress bar.

    Raises:
        ValueError: The name is not known, or the routing does not fit the model.
    """
    routing = parse_routing(routing)
    settings = settings or RoutingSettings()
    if not isinstance(routing, Routing):
        return policy_named(routing, model)
    if routing is Routing.ORIGINAL:
        return None
    if routing is Routing.RANDOM:
        return RandomRouting(settings.seed)
    if routing is Routing.HASH:
        return HashRouting(settings.seed)
    routers = routers or spectral_routers(model, settings.spectral(routing), progress=progress)
    if routing is Routing.SSMOE:
        return SpectralRouting(routers, settings.alpha, settings.mix)
    return SpectralRouting(routers, alpha=1.0)


def spectral_routers(model: PreTrainedModel, settings: SpectralSettings, *, progress: bool = True) -> SpectralRouters:
    """The model's spectral routers: those that lie beside its checkpoint if they were made so, else new ones."""
    beside = Path(str(model.config.name_or_path)) / ROUTERS_FILE
    if beside.is_file():
        stored = SpectralRouters.load(beside)
        if stored.settings == settings:
            return stored
    return SpectralRouters.of(model, settings, progress=progress)
