"""Routings that a name and settings are enough for: `usmoe`, or `usmoe:rate=0.3,causal=true`.

What stands here can be named wherever a routing is named. A policy's file is imported when its name is used.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.routing.policies import RoutingPolicy


@dataclass(frozen=True)
class NamedRouting:
    """A routing by name.

    Attributes:
        settings: File of `routing/` and class of its settings: a policy, or what `made(model, tokenizer)` makes one of.
        what: How tokens find their experts.
        source: Where it is from.
        cost: Compared with the model's own routing.
        refuses: What it cannot do.
    """

    settings: str
    what: str
    source: str
    cost: str = "none"
    refuses: str = "–"

    @property
    def kind(self) -> Any:
        """The class of its settings, a dataclass."""
        module, _, name = self.settings.partition(".")
        return getattr(import_module(f"ssmoe_embed.routing.{module}"), name)


_PLAIN = (
    "routers that are no plain softmax over all experts; experts that do not take tokens, experts and weights (Llama 4)"
)
_OWN_WEIGHTS = "experts weighed by more than scores (PhiMoE, Gemma 4) or not told tokens, experts and weights (Llama 4)"
_AHEAD = f"language models without `causal=true`; key-value caches; {_PLAIN}"
NAMED = {
    "random": NamedRouting(
        "tokens.RandomRouting",
        "Experts drawn anew for each token.",
        "[SSMoE](https://arxiv.org/abs/2605.30992), table 12",
    ),
    "hash": NamedRouting(
        "tokens.HashRouting",
        "Experts by token id.",
        "[SSMoE](https://arxiv.org/abs/2605.30992), table 12",
    ),
    "usmoe": NamedRouting(
        "pairs.UnifiedRouting",
        "The best pairs of a text's tokens and experts, by a score that both sides contribute to.",
        "[USMoE](https://arxiv.org/abs/2503.22996)",
        cost="as many pairs, unevenly spread; with `budget` fewer",
        refuses=_AHEAD,
    ),
    "expert-choice": NamedRouting(
        "pairs.ExpertChoice",
        "Each expert takes its best tokens of a text.",
        "[Expert Choice](https://arxiv.org/abs/2202.09368)",
        cost="as many pairs, up to rounding",
        refuses=_AHEAD,
    ),
    "competition": NamedRouting(
        "pairs.Competition",
        "The experts that answer a token most strongly.",
        "[CompeteSMoE](https://arxiv.org/abs/2505.13380)",
        cost="(E+k)/k times the experts' work",
        refuses=_OWN_WEIGHTS,
    ),
    "equal": NamedRouting(
        "controls.EqualShares",
        "The experts that the learned router chooses, all with the same weight.",
        "a control",
        refuses=_OWN_WEIGHTS,
    ),
    "least-similar": NamedRouting(
        "controls.LeastSimilarSettings",
        "The experts whose spectral embeddings are least similar to the token.",
        "a control",
        cost="spectral routers are made when it is made",
    ),
    "steer": NamedRouting(
        "derived.SteeringSettings",
        "The learned routers, with the experts favoured that a domain's texts use: `ssmoe steer` scores them.",
        "[DSMoE](https://arxiv.org/abs/2604.05267)",
        refuses="a table of another model",
    ),
    "codebook": NamedRouting(
        "derived.CodebookSettings",
        "The learned router's choice for the nearest of a layer's typical inputs.",
        "[VQMoE](https://arxiv.org/abs/2411.19402), a reading",
        cost="`codes`/E times the router's work; k-means when it is made",
    ),
    "smoothed": NamedRouting(
        "derived.SmoothedSettings",
        "The mean of the router's scores over noisy copies of its input.",
        "[S2MoE](https://arxiv.org/abs/2503.23007), a reading",
        cost="`copies` more scores per expert",
    ),
}
"""Every such routing."""


def is_named(routing: object) -> bool:
    """Whether a text begins with the name of such a routing."""
    return isinstance(routing, str) and str(routing).partition(":")[0] in NAMED


def canonical(routing: str) -> str:
    """A named routing in its shortest form: only settings that differ from their defaults, files with their digests.

    Raises:
        FileNotFoundError: A file that it names does not exist.
        ValueError: Its name or a setting is not known, or a value is not allowed.
    """
    name, settings = _read(routing)
    given = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            if field.metadata.get("file"):
                value = f"{value}#{_digest(value)}"
            given.append(f"{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return f"{name}:{','.join(given)}" if given else name


def check_causal(routing: str) -> None:
    """Make sure that a language model may use a named routing.

    Raises:
        ValueError: It may not, or see `canonical`.
    """
    settings = _read(routing)[1]
    if hasattr(settings, "check_causal"):
        settings.check_causal()


def spends_by_text(routing: str) -> bool:
    """Whether a routing gives each text a budget, so that a row of tokens must hold one text only."""
    return is_named(routing) and hasattr(_read(routing)[1], "causal")


def policy_named(routing: str, model: Any, tokenizer: Any = None) -> RoutingPolicy:
    """The policy of a named routing, made for a model and checked against it.

    Those that need a tokenizer and are given none take what lies beside the model's weights.

    Raises:
        FileNotFoundError: A file that it names does not exist.
        UnsupportedModelError: The model's routers or experts do not allow it.
        ValueError: It does not fit the model, or see `canonical`.
    """
    settings = _read(routing)[1]
    policy: RoutingPolicy = settings.made(model, tokenizer) if hasattr(settings, "made") else settings
    policy.check(model)
    return policy


def _read(routing: str) -> tuple[str, Any]:
    """Name and settings."""
    name, _, text = str(routing).partition(":")
    if name not in NAMED:
        raise ValueError(unknown("routing", name, NAMED))
    kind = NAMED[name].kind
    known = {field.name: field for field in fields(kind)}
    values: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{routing!r}: {unknown('setting', key, known)}" if known else f"{name} has no settings.")
        values[key] = _value(f"{name}:{key}", value, known[key])
    return name, kind(**values)


def _value(setting: str, text: str, field: Field[Any]) -> Any:
    """A setting's value from its text, of the type of its default; numbers may be fractions where whole ones are usual."""
    default = field.default
    if field.metadata.get("file"):
        return _checked_file(text)
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"{setting}={text!r} is neither true nor false.")
        return text == "true"
    if isinstance(default, Choice | str):
        return text
    for convert in (int, float) if isinstance(default, int) else (float,):
        try:
            return convert(text)
        except ValueError:
            continue
    raise ValueError(f"{setting}={text!r} is no number; write it like {setting}={default}.")


def _checked_file(text: str) -> str:
    """The name of a file that is there, and that is the one whose digest follows its name, if one does."""
    name, _, digest = text.partition("#")
    if not Path(name).is_file():
        raise FileNotFoundError(f"There is no file {name}.")
    if digest and digest != _digest(name):
        raise ValueError(f"{name} is another file than the one that was named by {text!r}; name it without #{digest}.")
    return name


def _digest(name: str) -> str:
    return sha256(Path(name).read_bytes()).hexdigest()[:8]
