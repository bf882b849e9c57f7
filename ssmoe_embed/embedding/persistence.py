"""The small repository on disk: configuration, spectral routers and calibration, pointing to the base model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.files import atomic_file, load_tensors, save_tensors
from ssmoe_embed.common.version import __version__
from ssmoe_embed.embedding.base_model import BaseModelSource
from ssmoe_embed.embedding.calibration import Calibrations, calibration_tensors, calibrations_from
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.quantization.packed import is_packed
from ssmoe_embed.spectral.routers import SpectralRouters

CONFIG = "ssmoe_config.json"
TENSORS = "ssmoe.safetensors"
OWN_BASE = "base"
"""Folder of a base model that is part of the repository itself."""
_REFERENCE_KEYS = ("base_model_name_or_path", "base_revision", "base_license", "dtype", "quantization")


@dataclass(frozen=True)
class Parts:
    """What a module consists of."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: EmbeddingSettings
    routers: SpectralRouters | None
    calibrations: Calibrations
    source: BaseModelSource


def save_parts(parts: Parts, folder: Path, config: dict[str, Any], *, trained: bool) -> None:
    """Write a module into a folder; the base model too if it was trained or belongs to the repository.

    Args:
        parts: The module's parts.
        folder: Where to.
        config: Everything of it that is not a weight.
        trained: The base model is not what it was loaded from.

    Raises:
        ValueError: The base model would have to be written and is in 4 bits.
    """
    included = parts.source.included or trained
    if included:
        _refuse_packed(parts.model)
        parts.model.save_pretrained(folder / OWN_BASE)
        parts.tokenizer.save_pretrained(folder / OWN_BASE)
    save_references(parts, folder, config, included=included)
    _require_this_package(folder / "config_sentence_transformers.json")


def _refuse_packed(model: PreTrainedModel) -> None:
    """Make sure that no rounded weights are written in the place of the trained ones."""
    if is_packed(model):
        raise ValueError(
            "This model carries its base model with it, which was rounded to 4 bits as it was loaded: saving it would lose "
            "the trained weights. Load it without 4-bit (model_kwargs={'load_in_4bit': False}) and save that; for a model "
            "that is loaded in 4 bits each time: `ssmoe build BASE --include-base --quantize nf4`."
        )


def save_references(parts: Parts, folder: Path, config: dict[str, Any], *, included: bool) -> None:
    """Write everything but the base model.

    Args:
        parts: The module's parts.
        folder: Where to.
        config: Everything of it that is not a weight.
        included: Point to the base model in the folder itself, not to where it came from.
    """
    if included:
        config = config | {"base_model_name_or_path": OWN_BASE, "base_revision": None}
    routers = parts.routers
    if routers and included:
        routers = routers.adopted_by(parts.model)  # training may have moved the learned routers beside them
    tensors = calibration_tensors(parts.calibrations) | (routers.tensors() if routers else {})
    reference = {"base_model": config["base_model_name_or_path"], "base_revision": config["base_revision"]}
    save_tensors(folder / TENSORS, tensors, (routers.metadata() if routers else {}) | reference)
    write_json(folder / CONFIG, config)


def load_parts(
    cls: type[Module],
    model_name_or_path: str,
    subfolder: str = "",
    *,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
    **ignored: Any,
) -> Parts:
    """Load what `save_parts` wrote; see `SSMoE.load`.

    Args:
        cls: The module's class, whose loading of files is used.
        model_name_or_path: Folder or hub id.
        subfolder: Where in it.
        token: Hub token.
        cache_folder: Hub cache.
        revision: Of the small repository.
        local_files_only: Never ask the hub.
        trust_remote_code: Allow code that comes with the base model.
        model_kwargs: For the base model.
        processor_kwargs: For the tokenizer.
        config_kwargs: Fields of `EmbeddingSettings`, and the rest for the base model's configuration.
        **ignored: Other keywords of sentence-transformers.
    """
    del ignored
    place = {
        "subfolder": subfolder,
        "token": token,
        "cache_folder": cache_folder,
        "revision": revision,
        "local_files_only": local_files_only,
    }
    try:
        config = cls.load_config(model_name_or_path, **place)
    except json.JSONDecodeError as error:
        raise ValueError(f"{CONFIG} of {model_name_or_path} is broken ({error}); copy or download it again.") from None
    if not config:
        raise FileNotFoundError(f"{model_name_or_path} has no {CONFIG}; build it with `ssmoe build`.")
    tensors_path = cls.load_file_path(model_name_or_path, TENSORS, **place)
    tensors, metadata = load_tensors(tensors_path or Path(model_name_or_path) / subfolder / TENSORS)
    overrides, base_config_kwargs = split_settings(config_kwargs or {})
    longest = (processor_kwargs or {}).get("model_max_length")
    overrides = ({} if longest is None else {"max_seq_length": longest}) | overrides
    saved = {name: value for name, value in config.items() if name not in _REFERENCE_KEYS}
    settings = EmbeddingSettings.of(**saved).changed(**overrides)
    base, included = config["base_model_name_or_path"], config["base_model_name_or_path"] == OWN_BASE
    if included:
        base = cls.load_dir_path(model_name_or_path, **place | {"subfolder": str(Path(subfolder) / OWN_BASE)})
        if base is None:
            raise FileNotFoundError(
                f"{model_name_or_path} lacks its folder {OWN_BASE!r} with the base model; copy it again."
            )
    source = BaseModelSource(
        name_or_path=base,
        revision=None if included else config.get("base_revision"),
        dtype=config.get("dtype"),
        quantization=config.get("quantization"),
        license=config.get("base_license"),
        included=included,
        token=token,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
        model_kwargs=model_kwargs,
        processor_kwargs=processor_kwargs,
        config_kwargs=base_config_kwargs,
    )
    model, tokenizer = source.load(settings.hidden_layer)
    routers = SpectralRouters.from_tensors(tensors, metadata) if "spectral" in metadata else None
    return Parts(model, tokenizer, settings, routers, calibrations_from(tensors), source)


def split_settings(keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are fields of `EmbeddingSettings`, and the others."""
    fields = EmbeddingSettings.__dataclass_fields__
    own = {name: value for name, value in keywords.items() if name in fields}
    return own, {name: value for name, value in keywords.items() if name not in fields}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; the same content gives the same bytes."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _require_this_package(path: Path) -> None:
    """Add this package to the requirements that sentence-transformers checks before it loads a model's modules."""
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["requirements"] = {
        "ssmoe-embed": {
            "specifier": f">={__version__}",
            "reason": "The model's module SSMoE comes with it: pip install ssmoe-embed, then import ssmoe_embed.",
        }
    }
    write_json(path, config)
