"""What a model's name leads to: a folder, the bundled model, a recipe with pinned settings, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum, auto
from pathlib import Path
from typing import Any

from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.loading import HubOptions
from ssmoe_embed.data import BUNDLED, BUNDLED_CLIP, bundled_folder


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


MODULES = "modules.json"
"""The file that makes a folder an embedding model."""
_TELLING = (MODULES, "config.json", "adapter_config.json")
"""The files that tell what a repository holds."""
_TIMEOUT = 10.0
"""Seconds to wait for the hub to say whether it has a model."""


class Kind(Enum):
    """What a name turned out to be."""

    EMBEDDING = auto()
    """A saved embedding model."""
    BASE = auto()
    """A plain language model, or an adapter on one."""
    RECIPE = auto()
    """A model that is built the first time."""


@dataclass(frozen=True)
class NamedModel:
    """Where a name leads: a folder, hub id or recipe's name, and what is there."""

    place: str
    kind: Kind


def find(name: str | Path, hub: HubOptions) -> NamedModel:
    """Look a model's name up; the hub is asked last, and never for a path, the bundled model or a recipe.

    Args:
        name: Folder, hub id, recipe name, or the bundled model's.
        hub: Where else to look.

    Raises:
        FileNotFoundError: There is no such model; the message says where was looked, and what the name may have been
            meant for.
    """
    name = local(name)
    folder = Path(name)
    if folder.is_dir():
        there = [file for file in _TELLING if (folder / file).is_file()]
        if there:
            return NamedModel(name, _kind(there))
        raise FileNotFoundError(
            f"The folder {name} holds neither {MODULES} (an embedding model) nor config.json (a language model) nor "
            "adapter_config.json (an adapter)."
        )
    bundled = bundled_folder(name)
    if bundled is not None:
        return NamedModel(str(bundled), Kind.EMBEDDING)
    if name in RECIPES:
        return NamedModel(name, Kind.EMBEDDING if MODULES in _cached(name, hub) else Kind.RECIPE)
    files, reason = _hub_files(name, hub)
    if files.intersection(_TELLING):
        return NamedModel(name, _kind(files))
    raise FileNotFoundError(unknown_model(name, reason))


def _kind(files: Collection[str]) -> Kind:
    return Kind.EMBEDDING if MODULES in files else Kind.BASE


def local(name: str | Path) -> str:
    """A model's name with `~` replaced by the user's folder.

    Raises:
        FileNotFoundError: It can only be a path, and no folder is there.
    """
    text = str(name)
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    if path.is_dir():
        return str(path) if text.startswith("~") else text
    if isinstance(name, Path) or path.is_absolute() or text.startswith(("~", ".")) or text.count("/") > 1:
        what = "is a file, not a folder" if path.is_file() else "does not exist"
        raise FileNotFoundError(f"The folder {str(path)!r} {what}; a model is a folder, a hub id or a recipe's name.")
    return text


def unknown_model(name: str, reason: str) -> str:
    """The message for a name that leads nowhere, with the nearest of those that do."""
    near = get_close_matches(name, [BUNDLED, BUNDLED_CLIP, *RECIPES], n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"There is no model {name!r}: no such folder, no recipe of that name, nothing usable on the hub ({reason}).{hint} "
        f"Recipes: {', '.join([BUNDLED, BUNDLED_CLIP, *RECIPES])}. To make an embedding model of a language model: "
        "`ssmoe build BASE`."
    )


def _hub_files(name: str, hub: HubOptions) -> tuple[set[str], str]:
    """The names of a hub repository's files, in the local cache or on the hub, and why there are none."""
    cached = _cached(name, hub)
    if cached or hub.local_files_only:
        return cached, "not in the local cache"
    try:
        info = model_info(name, revision=hub.revision, token=hub.token, timeout=_TIMEOUT)
    except Exception as error:
        return set(), f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return {sibling.rfilename for sibling in info.siblings or []}, f"it has none of {', '.join(_TELLING)}"


def _cached(name: str, hub: HubOptions) -> set[str]:
    """Which of the files that tell what a repository holds are in the local cache."""
    return {file for file in _TELLING if isinstance(_from_cache(name, file, hub), str)}


def _from_cache(name: str, file: str, hub: HubOptions) -> object:
    """The path of a cached file; something else if there is none, also for a name that no repository can have."""
    try:
        return try_to_load_from_cache(name, file, cache_dir=hub.cache_folder, revision=hub.revision)
    except HFValidationError:
        return None
