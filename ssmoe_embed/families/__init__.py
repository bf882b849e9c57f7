"""Adapters, one file a family; a file put into this folder is found by itself."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ssmoe_embed.families.base import MoEFamily, MoELayer, Score, TensorSource

__all__ = ["MoEFamily", "MoELayer", "Score", "TensorSource", "UnsupportedModelError", "family_of", "supported_types"]


class UnsupportedModelError(ValueError):
    """The model is dense, or of a family without an adapter."""


@cache
def _registry() -> dict[str, MoEFamily]:
    """One adapter instance per `model_type`."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {name: family() for family in MoEFamily.__subclasses__() for name in family.model_types}


def supported_types() -> list[str]:
    """The `config.model_type` values that have an adapter."""
    return sorted(_registry())


def family_of(config: Any) -> MoEFamily:
    """The adapter for a model configuration.

    Args:
        config: A transformers configuration.

    Raises:
        UnsupportedModelError: There is no adapter, for a dense model above all; the message lists what is supported.
    """
    model_type = getattr(config, "model_type", None)
    family = _registry().get(str(model_type))
    if family is None:
        raise UnsupportedModelError(
            f"model_type={model_type!r} is not a supported Mixture-of-Experts family: it has no experts to route to, or "
            f"no adapter yet. Supported: {', '.join(supported_types())}. A new family is one short file in "
            "ssmoe_embed/families/ (see ARCHITECTURE.md)."
        )
    return family
