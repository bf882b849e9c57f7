"""The settings of an embedding model, validated once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.embedding.methods import REPRESENTATIONS, Method, Representation, RoutingSignal
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.routing.mixing import Mix, checked_alpha


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


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method": Method.SSMOE,
        "routing_signal": RoutingSignal.LOGITS,
        "calibration": Calibration.BATCH,
        "combination": Combination.CONCAT,
        "prompt": "release-none",
    }
}
"""Values of `method` that stand for several settings: `paper` is what the paper's release computes."""


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a text becomes a vector.

    Attributes:
        method: The representation; `"paper"` is a preset for several settings.
        alpha: The spectral router's share, in [0, 1].
        mix: Mix scores or logits.
        routing_signal: What `moee` and `ssmoe` read off the routers; None for the method's own.
        combination: How hidden state and routing are joined.
        routing_weight: The routing block's weight in a `sum`; the hidden state's is 1.
        calibration: How features are brought to one scale.
        prompt: A name from `prompts.TEMPLATES` or `prompts.ENSEMBLES`, or a template with `{text}`.
        hidden_layer: Whose output is the hidden state: an index into the model's `hidden_states` (0 the embeddings, -1 the
            last layer, after the final norm). Layers after it are not run, so they give no routing signal either.
        max_seq_length: Tokens read of a text, template included.

    Raises:
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
    hidden_layer: int = -1
    max_seq_length: int = 512

    def __post_init__(self) -> None:
        checked = {
            "method": Method.parse(self.method, "method"),
            "alpha": checked_alpha(self.alpha),
            "mix": Mix.parse(self.mix, "mix"),
            "combination": Combination.parse(self.combination, "combination"),
            "calibration": Calibration.parse(self.calibration, "calibration"),
            "routing_weight": _positive(self.routing_weight),
        }
        if self.routing_signal is not None:
            checked["routing_signal"] = RoutingSignal.parse(self.routing_signal, "routing_signal")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.routing_signal is not None and not REPRESENTATIONS[self.method].hidden:
            raise ValueError(
                f"routing_signal={str(self.routing_signal)!r} cannot be combined with method={str(self.method)!r}, which "
                "is one signal by itself; choose 'moee' or 'ssmoe', or leave routing_signal out."
            )
        if self.routing_signal is not None and self.method is Method.SMOE:
            raise ValueError(
                "method='smoe' has no routing block, so it takes no routing_signal; choose 'moee' or 'ssmoe'."
            )
        templates(self.prompt)
        if isinstance(self.hidden_layer, bool) or not isinstance(self.hidden_layer, int):
            raise ValueError(f"hidden_layer={self.hidden_layer!r} is not a whole number; -1 is the last layer.")
        if isinstance(self.max_seq_length, bool) or not isinstance(self.max_seq_length, int) or self.max_seq_length < 1:
            raise ValueError(f"max_seq_length={self.max_seq_length!r} is not a whole number of tokens of at least 1.")

    @classmethod
    def of(cls, **values: Any) -> EmbeddingSettings:
        """Settings from keywords, with presets filled in and names that do not exist refused."""
        return cls()._with(values)

    def changed(self, **values: Any) -> EmbeddingSettings:
        """These settings with some of them changed."""
        return self._with(values)

    def _with(self, values: dict[str, Any]) -> EmbeddingSettings:
        for name in values:
            if name not in self.__dataclass_fields__:
                raise ValueError(unknown("setting", name, self.__dataclass_fields__))
        method = values.get("method")
        if isinstance(method, str) and method in PRESETS:
            values = PRESETS[method] | {name: value for name, value in values.items() if name != "method"}
        elif method is not None and str(method) not in [str(m) for m in Method]:
            raise ValueError(unknown("method", method, [*map(str, Method), *PRESETS]))
        return replace(self, **values)

    @property
    def representation(self) -> Representation:
        """What the method consists of, with `routing_signal` put in."""
        chosen = REPRESENTATIONS[self.method]
        return chosen if self.routing_signal is None else replace(chosen, signal=self.routing_signal)

    @property
    def reroutes(self) -> bool:
        """Whether the forward pass is not the model's own."""
        return self.representation.reroutes and self.alpha > 0

    @property
    def needs_spectral_routers(self) -> bool:
        """Whether the vectors depend on them."""
        signal = self.representation.signal
        return (
            self.reroutes or signal is RoutingSignal.EV_LOGITS or (signal is RoutingSignal.WEIGHTS and self.alpha > 0)
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {key: str(value) if isinstance(value, Choice) else value for key, value in asdict(self).items()}


def _positive(weight: object) -> float:
    """`routing_weight` as a float."""
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight) or weight <= 0:
        raise ValueError(f"routing_weight={weight!r} is not a positive number; 1.0 weighs both blocks alike.")
    return float(weight)
