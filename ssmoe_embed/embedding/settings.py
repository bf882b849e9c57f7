"""The settings of an embedding, as values: how the model runs, what is read of it, and both together. Validated once.

`EmbeddingSettings` is what people set, one keyword a setting. Two values follow from it: `ForwardSettings`, one forward
pass, and `FeatureSettings`, what becomes of what it tells. Settings with equal `Block`s of features can share them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.embedding.methods import REPRESENTATIONS, Method, Representation, RoutingSignal
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.routing.mixing import Mix, checked_alpha
from ssmoe_embed.routing.named import canonical
from ssmoe_embed.routing.policies import RoutingPolicy, SpectralMix


class Combination(Choice):
    """How the hidden-state block and the routing block are joined."""

    CONCAT = "concat"
    """One after the other."""
    SUM = "sum"
    """One after the other, each of unit length times the square root of its weight: the dot product of two such
    vectors is the weighted sum of the blocks' cosines."""


class Calibration(Choice):
    """How features are brought to one scale."""

    NONE = "none"
    """Not at all."""
    STANDARDIZE = "standardize"
    """Mean 0 and variance 1 per feature, on the calibration texts."""
    WHITEN = "whiten"
    """Decorrelated within each block, by the shrunk covariance of the calibration texts."""
    BATCH = "batch"
    """Standardised on the batch at hand, as the paper's release does: a text's vector depends on its neighbours."""

    @property
    def is_fitted(self) -> bool:
        """Whether it has factors that are fitted on texts and saved."""
        return self in (Calibration.STANDARDIZE, Calibration.WHITEN)


@dataclass(frozen=True)
class ForwardSettings:
    """One forward pass over a text; texts read under equal ones give the same, so they need to be read only once.

    Attributes:
        routing: The mix of learned and spectral routers, a name (`routing/named.py`), or any other policy; None for the
            model's own routing.
        hidden_layer: Whose output is the hidden state, an index into the model's `hidden_states`.
        prompt: See `EmbeddingSettings`.
        instruction: See `EmbeddingSettings`.
        max_seq_length: See `EmbeddingSettings`.
    """

    routing: SpectralMix | RoutingPolicy | str | None = None
    hidden_layer: int = -1
    prompt: str = "none"
    instruction: str = ""
    max_seq_length: int | None = 512

    @property
    def mixes(self) -> bool:
        """Whether spectral routers have a share in its routing."""
        return isinstance(self.routing, SpectralMix)

    @property
    def name(self) -> str:
        """What calibration factors that belong to this pass are kept under, on disk too: only ever add to it.

        Tokens left out of long texts do not count: factors are fitted on short ones.
        """
        mix = self.routing
        routing = f"ssmoe({mix.alpha!r},{mix.mix})" if isinstance(mix, SpectralMix) else str(mix or "original")
        instruction = f"/instruction {self.instruction!r}" if self.instruction else ""
        return f"{routing}/layer {self.hidden_layer}/{self.prompt}{instruction}"


@dataclass(frozen=True)
class Block:
    """One block of features: the hidden state, or one routing signal of all layers, under one forward pass.

    Attributes:
        forward: The forward pass.
        signal: The routing signal; None for the hidden state.
        mix: Of learned and spectral scores, for the signal `weights`; None for all others.
    """

    forward: ForwardSettings
    signal: RoutingSignal | None = None
    mix: SpectralMix | None = None

    def factors(self, calibration: Calibration) -> str:
        """What its calibration factors are kept under, on disk too; the same for all settings that have this block."""
        signal = f"weights({self.mix.alpha!r},{self.mix.mix})" if self.mix is not None else self.signal or "hidden"
        return f"{calibration}/{signal}/{self.forward.name}"

    @property
    def is_spectral(self) -> bool:
        """Whether other spectral routers would make other features."""
        mixes = self.mix is not None and self.mix.alpha > 0
        return self.forward.mixes or mixes or self.signal is RoutingSignal.EV_LOGITS


@dataclass(frozen=True)
class FeatureSettings:
    """What becomes of what a forward pass tells of a text.

    Attributes:
        hidden: Whether the hidden state is part of the vector.
        signal: The routing signal that is part of it, if any.
        mix: Of learned and spectral scores, for the signal `weights`.
        combination: How hidden state and routing are joined.
        routing_weight: The routing block's weight in a `sum`.
        calibration: How features are brought to one scale.
    """

    hidden: bool
    signal: RoutingSignal | None
    mix: SpectralMix
    combination: Combination
    routing_weight: float
    calibration: Calibration

    def blocks(self, forward: ForwardSettings) -> tuple[Block, ...]:
        """The blocks that a vector consists of, in their order."""
        found = [Block(forward)] if self.hidden else []
        if self.signal is not None:
            found.append(Block(forward, self.signal, self.mix if self.signal is RoutingSignal.WEIGHTS else None))
        return tuple(found)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method": Method.SSMOE,
        "routing_signal": RoutingSignal.LOGITS,
        "calibration": Calibration.BATCH,
        "combination": Combination.CONCAT,
        "prompt": "release-none",
        "max_seq_length": None,
    }
}
"""Values of `method` that mean several settings: `paper` is what the paper's release computes."""

PRESET_SPECTRAL: dict[str, dict[str, Any]] = {"paper": {"sign": "raw"}}
"""The fields of `SpectralSettings` that belong to a preset."""


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a text becomes a vector.

    Attributes:
        method: The representation; `"paper"` is a preset for several settings.
        alpha: The spectral router's share, in [0, 1].
        mix: Mix scores or logits.
        routing_signal: What `router`, `moee` and `ssmoe` read off the routers; None for the method's own.
        combination: How hidden state and routing are joined.
        routing_weight: The routing block's weight in a `sum`; the hidden state's is 1.
        calibration: How features are brought to one scale.
        prompt: A name from `prompts.TEMPLATES` or `prompts.ENSEMBLES`, or a template with `{text}`.
        instruction: A task in words, put before the text *inside* the template, as the paper's release puts those of E5;
            empty for none.
        hidden_layer: Whose output is the hidden state: an index into the model's `hidden_states` (0 the embeddings, -1 the
            last layer, after the final norm). Layers after it are not run, so they give no routing signal either.
        max_seq_length: Tokens read of a text, template included; None for as many as the model takes.
        routing: What routes the forward pass of a method that the mix does not: a name from `routing/named.py` with its
            settings, such as `usmoe:rate=0.3`; None for the model's own routers.

    Raises:
        FileNotFoundError: `routing` names a file that does not exist.
        ValueError: A value is not allowed; the message lists what is.
    """

    method: Method = Method.SSMOE
    alpha: float = 0.5
    mix: Mix = Mix.PROBS
    routing_signal: RoutingSignal | None = None
    combination: Combination = Combination.CONCAT
    routing_weight: float = 1.0
    calibration: Calibration = Calibration.STANDARDIZE
    prompt: str = "none"
    instruction: str = ""
    hidden_layer: int = -1
    max_seq_length: int | None = 512
    routing: str | None = None

    def __post_init__(self) -> None:
        checked = {
            "method": Method.parse(self.method, "method"),
            "alpha": checked_alpha(self.alpha),
            "mix": Mix.parse(self.mix, "mix"),
            "combination": Combination.parse(self.combination, "combination"),
            "calibration": Calibration.parse(self.calibration, "calibration"),
        }
        if self.routing_signal is not None:
            checked["routing_signal"] = RoutingSignal.parse(self.routing_signal, "routing_signal")
        if self.routing is not None:
            checked["routing"] = canonical(self.routing)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._check_routing()
        templates(self.prompt, self.instruction)
        weight: Any = self.routing_weight
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight) or weight <= 0:
            raise ValueError(f"routing_weight={weight!r} is not a positive number; 1.0 weighs both blocks alike.")
        object.__setattr__(self, "routing_weight", float(weight))
        if not _is_whole(self.hidden_layer):
            raise ValueError(f"hidden_layer={self.hidden_layer!r} is not a whole number; -1 is the last layer.")
        if self.max_seq_length is not None and not (_is_whole(self.max_seq_length) and self.max_seq_length >= 1):
            raise ValueError(
                f"max_seq_length={self.max_seq_length!r} is not a whole number of tokens of at least 1; None reads as many "
                "as the model takes."
            )

    def _check_routing(self) -> None:
        """Refuse a routing signal that the method does not read, and a routing where the mix routes."""
        allowed, method = REPRESENTATIONS[self.method].signals, str(self.method)
        if self.routing_signal is not None and self.routing_signal not in allowed:
            own = f"takes only {' or '.join(repr(str(one)) for one in allowed)}" if allowed else "has no routing block"
            raise ValueError(
                f"routing_signal={str(self.routing_signal)!r} cannot be combined with method={method!r}, which {own}; "
                "choose 'moee' or 'ssmoe', or leave routing_signal out."
            )
        if self.routing is not None and self.representation.reroutes:
            raise ValueError(
                f"routing={self.routing!r} cannot be combined with method={method!r}, which is routed by the mix of learned "
                "and spectral routers; choose method='smoe', 'moee' or 'router'."
            )

    @classmethod
    def of(cls, **values: Any) -> EmbeddingSettings:
        """Settings from keywords, with presets filled in and names that do not exist refused."""
        return cls().changed(**values)

    def changed(self, **values: Any) -> EmbeddingSettings:
        """These settings with some of them changed."""
        for name in values:
            if name not in self.__dataclass_fields__:
                raise ValueError(unknown("setting", name, self.__dataclass_fields__))
        method = values.get("method")
        if isinstance(method, str) and method in PRESETS:
            values = PRESETS[method] | {name: value for name, value in values.items() if name != "method"}
        elif method is not None and str(method) not in ("hidden", *map(str, Method)):
            raise ValueError(unknown("method", method, [*map(str, Method), *PRESETS]))
        return replace(self, **values)

    # --- the values that follow ---------------------------------------------------------------------------------------

    @property
    def representation(self) -> Representation:
        """What the method consists of, with `routing_signal` put in."""
        chosen = REPRESENTATIONS[self.method]
        return chosen if self.routing_signal is None else replace(chosen, signal=self.routing_signal)

    @cached_property
    def forward(self) -> ForwardSettings:
        """The forward pass that they take."""
        mixes = self.representation.reroutes and self.alpha > 0
        return ForwardSettings(
            routing=SpectralMix(self.alpha, self.mix) if mixes else self.routing,
            hidden_layer=self.hidden_layer,
            prompt=self.prompt,
            instruction=self.instruction,
            max_seq_length=self.max_seq_length,
        )

    @cached_property
    def features(self) -> FeatureSettings:
        """What they make of what that pass tells."""
        chosen, mix = self.representation, SpectralMix(self.alpha, self.mix)
        return FeatureSettings(
            chosen.hidden, chosen.signal, mix, self.combination, self.routing_weight, self.calibration
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of features that a vector consists of, in their order."""
        return self.features.blocks(self.forward)

    @property
    def needs_spectral_routers(self) -> bool:
        """Whether the vectors depend on spectral routers."""
        return any(block.is_spectral for block in self.blocks)

    def saved(self) -> dict[str, Any]:
        """The settings as a model's configuration has them: without a routing that is not set."""
        return {name: value for name, value in self.as_dict().items() if name != "routing" or value is not None}

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {key: str(value) if isinstance(value, Choice) else value for key, value in asdict(self).items()}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
