"""Names that users type, each with its base model and pinned settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.data import BUNDLED


@dataclass(frozen=True)
class Recipe:
    """How to build one named model.

    Attributes:
        base: Hub id of the base model.
        license: Its licence, an SPDX identifier in lower case or `other`.
        released: The day it was announced, ISO 8601.
        languages: Those its authors name, ISO 639-3 and script.
        settings: Fields of `EmbeddingSettings` and of `SpectralSettings` that differ from the defaults.
    """

    base: str
    license: str
    released: str
    languages: tuple[str, ...] = ("eng-Latn",)
    settings: dict[str, Any] = field(default_factory=dict)


_CHINESE = ("eng-Latn", "zho-Hans")
_PAPER = {"method": "ssmoe", "alpha": 0.5, "top_c": 50, "prompt": "prompteol"}
"""For the models that the paper embeds with (its section 4.3): its best number of eigenvectors and the low end of its range
of α. https://arxiv.org/abs/2605.30992"""
_SCALED = _PAPER | {"top_c": 0.05}
"""For models of other expert sizes: the paper's share of the eigenvectors, about 50 of 1,024."""

RECIPES = {
    "ssmoe/olmoe-7b": Recipe("allenai/OLMoE-1B-7B-0924", "apache-2.0", "2024-09-03", settings=_PAPER),
    "ssmoe/olmoe-7b-instruct": Recipe("allenai/OLMoE-1B-7B-0924-Instruct", "apache-2.0", "2024-09-03", settings=_PAPER),
    "ssmoe/qwen1.5-moe": Recipe("Qwen/Qwen1.5-MoE-A2.7B", "other", "2024-03-28", _CHINESE, _PAPER),
    "ssmoe/deepseek-moe-16b": Recipe("deepseek-ai/deepseek-moe-16b-base", "other", "2024-01-11", _CHINESE, _PAPER),
    "ssmoe/phi-tiny-moe": Recipe("microsoft/Phi-tiny-MoE-instruct", "mit", "2025-06-23", settings=_SCALED),
    "ssmoe/qwen3-30b-a3b": Recipe("Qwen/Qwen3-30B-A3B", "apache-2.0", "2025-04-29", _CHINESE, _SCALED),
    "ssmoe/qwen3-next-80b": Recipe("Qwen/Qwen3-Next-80B-A3B-Instruct", "apache-2.0", "2025-09-11", _CHINESE, _SCALED),
    "ssmoe/gpt-oss-20b": Recipe("openai/gpt-oss-20b", "apache-2.0", "2025-08-05", settings=_SCALED),
    "ssmoe/gpt-oss-120b": Recipe("openai/gpt-oss-120b", "apache-2.0", "2025-08-05", settings=_SCALED),
    "ssmoe/ernie-4.5-21b": Recipe("baidu/ERNIE-4.5-21B-A3B-Base-PT", "apache-2.0", "2025-06-30", _CHINESE, _SCALED),
    "ssmoe/gemma-4-26b": Recipe("google/gemma-4-26B-A4B", "apache-2.0", "2026-04-02", settings=_SCALED),
    "ssmoe/nemotron-3-nano": Recipe(
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "other", "2025-12-15", settings=_SCALED
    ),
    "ssmoe/glm-4.7-flash": Recipe("zai-org/GLM-4.7-Flash", "mit", "2026-01-19", _CHINESE, _SCALED),
    "ssmoe/qwen3.5-35b-a3b": Recipe("Qwen/Qwen3.5-35B-A3B", "apache-2.0", "2026-02-24", _CHINESE, _SCALED),
    "ssmoe/granite-4-tiny": Recipe("ibm-granite/granite-4.0-h-tiny", "apache-2.0", "2025-10-02", settings=_SCALED),
    "ssmoe/lfm2-8b-a1b": Recipe("LiquidAI/LFM2-8B-A1B", "other", "2025-10-07", settings=_SCALED),
    "ssmoe/mixtral-8x7b": Recipe(
        "mistralai/Mixtral-8x7B-v0.1",
        "apache-2.0",
        "2023-12-11",
        ("eng-Latn", "fra-Latn", "deu-Latn", "ita-Latn", "spa-Latn"),
        _SCALED,
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: There is none; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, [BUNDLED, *RECIPES]))
    return RECIPES[name]
