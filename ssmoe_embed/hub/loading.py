"""`load`: a folder, a hub id or a recipe's name becomes a `SentenceTransformer`."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from pathlib import Path
from typing import Any

from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from platformdirs import user_cache_path

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.devices import check_device
from ssmoe_embed.data import tiny_folder
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.hub.building import build
from ssmoe_embed.hub.recipes import BUNDLED, RECIPES, recipe
from ssmoe_embed.quantization.settings import Quantization
from ssmoe_embed.spectral.settings import SpectralSettings

_MODULES = "modules.json"
_TIMEOUT = 10.0
"""Seconds to wait for the hub to say whether it has a model."""


def load(
    name: str | Path = BUNDLED,
    *,
    device: str | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    load_in_4bit: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
    **settings: Any,
) -> EmbeddingModel:
    """Load an embedding model.

    The name is looked up as a folder, then on the hub, then among the recipes. A folder or hub id may also be a plain MoE
    language model, which is turned into an embedding model in memory. A recipe is built once into the user's cache. The
    default, `ssmoe/tiny`, comes with the package and never asks the hub.

    Args:
        name: Folder, hub id or recipe name.
        device: Where to run; by default the fastest device at hand.
        revision: Hub revision of what `name` names.
        token: Hub token.
        cache_folder: Hub cache.
        local_files_only: Never ask the hub.
        trust_remote_code: Allow code that comes with a model.
        load_in_4bit: Keep the base model's weights in 4 bits (NF4), experts included; by default as it was built.
        model_kwargs: For the base model: `dtype`, `device_map`, `attn_implementation`, `quantization_config`, ….
        progress: Show progress bars on what takes long.
        **settings: Fields of `EmbeddingSettings` that override the saved ones: `method`, `alpha`, `prompt`, …. Calibration
            factors that they need and the model does not have are fitted on the package's sample of texts.

    Returns:
        A `SentenceTransformer`.

    Raises:
        FileNotFoundError: There is no model of that name.
        ValueError: A setting is not known or has a value that is not allowed, or the device is not there.
    """
    if device is not None:
        check_device(device)
    if load_in_4bit is not None:
        model_kwargs = (model_kwargs or {}) | {"load_in_4bit": load_in_4bit}
    quantize = str(Quantization.NF4) if load_in_4bit else None
    hub: dict[str, Any] = {
        "token": token,
        "cache_folder": cache_folder,
        "local_files_only": local_files_only,
        "trust_remote_code": trust_remote_code,
        "model_kwargs": model_kwargs,
    }
    place, found = _resolve(str(name), revision, hub)
    _check_names(settings, fixed=() if found is _Found.BASE else SpectralSettings.__dataclass_fields__)
    if found is _Found.BASE:
        module = SSMoE.from_base(place, revision=revision, quantize=quantize, progress=progress, **hub, **settings)
        mapped = device is None and (model_kwargs or {}).get("device_map") is not None
        return EmbeddingModel(modules=[module], device=str(module.model.device) if mapped else device)
    if found is _Found.RECIPE:
        place, revision = _built(place, hub, quantize, progress), None
    hub["local_files_only"] = local_files_only or Path(place).is_dir()
    with loading_bar(progress and place != str(tiny_folder())):
        model = EmbeddingModel(place, device=device, revision=revision, config_kwargs=settings, **hub)
    if isinstance(model[0], SSMoE):  # any other sentence-transformers model is taken as it is
        model[0].fit_calibration(progress=progress)
    return model


def _check_names(settings: dict[str, Any], fixed: Collection[str]) -> None:
    """Refuse keywords that are no setting, and settings that are fixed in a built model."""
    known = {*EmbeddingSettings.__dataclass_fields__, *SpectralSettings.__dataclass_fields__}
    for name in settings:
        if name not in known:
            raise ValueError(unknown("setting", name, sorted(known)))
        if name in fixed:
            raise ValueError(f"{name} is fixed when a model is built; build another one with `ssmoe build BASE`.")


class _Found(Enum):
    """What a name turned out to be."""

    EMBEDDING = auto()
    """A saved embedding model."""
    BASE = auto()
    """A plain language model."""
    RECIPE = auto()


def _resolve(name: str, revision: str | None, hub: dict[str, Any]) -> tuple[str, _Found]:
    """Where a name leads and what is there."""
    folder = Path(name)
    if folder.is_dir():
        if (folder / _MODULES).is_file() or (folder / "config.json").is_file():
            return name, _Found.EMBEDDING if (folder / _MODULES).is_file() else _Found.BASE
        raise FileNotFoundError(
            f"The folder {name} holds neither {_MODULES} (an embedding model) nor config.json (a language model)."
        )
    if name == BUNDLED:
        return str(tiny_folder()), _Found.EMBEDDING
    files, reason = _hub_files(name, revision, hub)
    if _MODULES in files:
        return name, _Found.EMBEDDING
    if "config.json" in files:
        return name, _Found.BASE
    if name in RECIPES:
        return name, _Found.RECIPE
    raise FileNotFoundError(
        f"There is no model {name!r}: no such folder, nothing usable on the hub ({reason}), and no recipe of that name. "
        f"Recipes: {', '.join([BUNDLED, *RECIPES])}. To make an embedding model of a language model: `ssmoe build BASE`."
    )


def _hub_files(name: str, revision: str | None, hub: dict[str, Any]) -> tuple[set[str], str]:
    """The names of a hub repository's files, in the local cache or on the hub, and why there are none."""
    cached = {
        file
        for file in (_MODULES, "config.json")
        if isinstance(_from_cache(name, file, revision, hub["cache_folder"]), str)
    }
    if cached or hub["local_files_only"]:
        return cached, "not in the local cache"
    try:
        info = model_info(name, revision=revision, token=hub["token"], timeout=_TIMEOUT)
    except Exception as error:
        return set(), f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return {sibling.rfilename for sibling in info.siblings or []}, "it has neither modules.json nor config.json"


def _from_cache(name: str, file: str, revision: str | None, cache_folder: str | None) -> object:
    """The path of a cached file; something else if there is none, also for a name that no repository can have."""
    try:
        return try_to_load_from_cache(name, file, cache_dir=cache_folder, revision=revision)
    except HFValidationError:
        return None


def _built(name: str, hub: dict[str, Any], quantize: str | None, progress: bool) -> str:
    """The folder of a recipe's model in the user's cache, built the first time; that of a 4-bit one is another."""
    folder = user_cache_path("ssmoe_embed") / "built" / (name if quantize is None else f"{name}-{quantize}")
    if not folder.is_dir():
        chosen = recipe(name)
        build(
            chosen.base, folder, license=chosen.license, quantize=quantize, progress=progress, **hub, **chosen.settings
        )
    return str(folder)
