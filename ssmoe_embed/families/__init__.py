"""Adapters, one class per family; a file put into this folder is found by itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from torch import nn
from transformers import AutoConfig

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, MoELayer, Score
from ssmoe_embed.families.refused import REFUSED

__all__ = [
    "FamilyNotes",
    "MoEFamily",
    "MoELayer",
    "Score",
    "UnsupportedModelError",
    "families",
    "family_of",
    "load_config",
    "register_adapter",
    "register_families",
    "supported_types",
]


_DENSE = "its config.json names no experts, so there is nothing to route to. Choose a Mixture-of-Experts model"
_UNKNOWN = (
    "it has experts, but no adapter yet. A new family is a short class in ssmoe_embed/families/ (see ARCHITECTURE.md), its "
    "twin one line there"
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of experts."""


class UnsupportedModelError(ValueError):
    """The model is dense, of a family without an adapter, or of a kind that its family's adapter refuses."""


@cache
def families() -> tuple[MoEFamily, ...]:
    """One instance of every adapter."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return tuple(family() for family in sorted(_adapters(MoEFamily), key=lambda family: min(family.models)))


def _adapters(family: type[MoEFamily]) -> Iterator[type[MoEFamily]]:
    """The classes below a class that name models of their own."""
    for kind in family.__subclasses__():
        if "models" in vars(kind):
            yield kind
        yield from _adapters(kind)


@cache
def _registry() -> dict[str, MoEFamily]:
    """The adapter of each `model_type`."""
    return {name: family for family in families() for name in family.model_types}


_FURTHER: dict[str, MoEFamily] = {}
"""Adapters that are not in this folder, by `model_type`."""


def register_adapter(family: MoEFamily) -> None:
    """Let `family_of` find an adapter of models that are no language models, and so are not in the table of families.

    It takes precedence over an earlier one for the same `model_type`.
    """
    _FURTHER.update(dict.fromkeys(family.model_types, family))


@cache
def register_families() -> None:
    """Tell transformers of the families that it has no classes for. Doing so twice does nothing."""
    for family in families():
        family.register()


def supported_types() -> list[str]:
    """The `config.model_type` values that have an adapter."""
    return sorted(_registry())


def load_config(name_or_path: str | Path, **kwargs: Any) -> Any:
    """The configuration of a model, also of a supported family that transformers has no class for."""
    register_families()
    return AutoConfig.from_pretrained(name_or_path, **kwargs)


def family_of(subject: Any) -> MoEFamily:
    """The adapter for a model.

    Raises:
        UnsupportedModelError: There is no adapter, for a dense model above all, or it refuses this model; the message says
            why and lists what is supported.
    """
    model = subject if isinstance(subject, nn.Module) else None
    config: Any = subject if model is None else model.config
    text = _text_part(config)
    kinds = [getattr(part, "model_type", None) for part in ((config,) if text is config else (config, text))]
    known_types = _registry() | _FURTHER
    named = f"model_type={kinds[0]!r}" + f" with a text part of model_type={kinds[-1]!r}" * (len(kinds) > 1)
    known = next((str(kind) for kind in kinds if kind in known_types or kind in REFUSED), None)
    family = known_types.get(str(known))
    if family is None:
        has_experts = any(getattr(text, name, None) for name in _EXPERTS)
        reason = REFUSED[known] if known else _UNKNOWN if has_experts else _DENSE
        raise UnsupportedModelError(
            f"{named} is not a supported Mixture-of-Experts family: {reason}. Supported: {', '.join(supported_types())}."
        )
    refusal = family.refusal(text, model)
    if refusal is not None:
        raise UnsupportedModelError(f"This model ({named}) is not supported: {refusal}")
    return family.variant(text)


def _text_part(config: Any) -> Any:
    """The decoder's part of a configuration: all of it, unless the model does more than read text."""
    try:
        return config.get_text_config()
    except (AttributeError, ValueError):  # no configuration of transformers', or one with several decoders
        return config
