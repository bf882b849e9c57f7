"""Adapters, one file a family; a file put into this folder is found by itself."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from torch import nn
from transformers import AutoConfig

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, MoELayer, Score, TensorSource
from ssmoe_embed.families.refused import REFUSED

__all__ = [
    "FamilyNotes",
    "MoEFamily",
    "MoELayer",
    "Score",
    "TensorSource",
    "UnsupportedModelError",
    "families",
    "family_of",
    "load_config",
    "register_families",
    "supported_types",
]


class UnsupportedModelError(ValueError):
    """The model is dense, of a family without an adapter, or of a kind that its family's adapter refuses."""


@cache
def families() -> tuple[MoEFamily, ...]:
    """One instance of every adapter."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return tuple(family() for family in sorted(MoEFamily.__subclasses__(), key=lambda family: family.model_types))


@cache
def _registry() -> dict[str, MoEFamily]:
    """The adapter of each `model_type`."""
    return {name: family for family in families() for name in family.model_types}


@cache
def register_families() -> None:
    """Tell transformers of the families that it has no classes for. Doing so twice does nothing."""
    for family in families():
        family.register()


def supported_types() -> list[str]:
    """The `config.model_type` values that have an adapter."""
    return sorted(_registry())


def load_config(name_or_path: str | Path, **kwargs: Any) -> Any:
    """The configuration of a model, also of a supported family that transformers has no class for.

    Args:
        name_or_path: Folder or hub id.
        **kwargs: For `AutoConfig.from_pretrained`.
    """
    register_families()
    return AutoConfig.from_pretrained(name_or_path, **kwargs)


def family_of(subject: Any) -> MoEFamily:
    """The adapter for a model.

    Args:
        subject: A transformers model, or its configuration.

    Raises:
        UnsupportedModelError: There is no adapter, for a dense model above all, or it refuses this model; the message says
            why and lists what is supported.
    """
    model = subject if isinstance(subject, nn.Module) else None
    config: Any = subject if model is None else model.config
    model_type = getattr(config, "model_type", None)
    family = _registry().get(str(model_type))
    if family is None:
        reason = REFUSED.get(
            str(model_type),
            "it has no experts to route to, or no adapter yet. A new family is one short file in ssmoe_embed/families/ "
            "(see ARCHITECTURE.md)",
        )
        raise UnsupportedModelError(
            f"model_type={model_type!r} is not a supported Mixture-of-Experts family: {reason}. "
            f"Supported: {', '.join(supported_types())}."
        )
    refusal = family.refusal(config, model)
    if refusal is not None:
        raise UnsupportedModelError(f"This {model_type!r} model is not supported: {refusal}")
    return family
