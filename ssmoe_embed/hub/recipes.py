"""Names that users type, each with its base model and pinned settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssmoe_embed.choices import unknown

EMBEDDED = "ssmoe/tiny"
"""The model that comes with the package."""


@dataclass(frozen=True)
class Recipe:
    """How to build one named model.

    Attributes:
        base: Hub id of the base model.
        license: Its licence.
        settings: Fields of `EmbeddingSettings` and of `SpectralSettings` that differ from the defaults.
    """

    base: str
    license: str
    settings: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "ssmoe/olmoe-7b": Recipe(
        "allenai/OLMoE-1B-7B-0924",
        "apache-2.0",
        {"method": "ssmoe", "alpha": 0.5, "top_c": 50, "prompt": "prompteol"},
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, [EMBEDDED, *RECIPES]))
    return RECIPES[name]
