"""What a model's name leads to: a folder, the bundled model, a recipe, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, auto
from pathlib import Path

from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ssmoe_embed.common.hub import HubOptions
from ssmoe_embed.data import BUNDLED, BUNDLED_CLIP, bundled_folder
from ssmoe_embed.hub.recipes import RECIPES

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
