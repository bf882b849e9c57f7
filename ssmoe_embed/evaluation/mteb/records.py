"""What mteb is told of a model: how it was loaded, its size, its origin, and a revision of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from mteb.models.model_meta import ScoringFunction
from mteb.types import Licenses

from ssmoe_embed.data import BUNDLED, tiny_folder
from ssmoe_embed.embedding.adapters import adapter_on
from ssmoe_embed.embedding.fingerprint import Fingerprint
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.persistence import TENSORS
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.results.finished import cached_commit
from ssmoe_embed.families import family_of
from ssmoe_embed.hub.names import RECIPES

_MIB = 2**20


def loading_changes(
    model_kwargs: Mapping[str, Any] | None, load_in_4bit: bool | None, built: str | None
) -> dict[str, Any]:
    """Of the keywords that a model was loaded with, what changes its numbers, as JSON values that can be part of a name.

    Args:
        model_kwargs: See `ssmoe_embed.load`.
        load_in_4bit: See `ssmoe_embed.load`.
        built: The 4-bit preset that the model was built with, if any.
    """
    given = dict(model_kwargs or {}) | ({} if load_in_4bit is None else {"load_in_4bit": load_in_4bit})
    dtype = given.get("dtype", given.get("torch_dtype"))
    found = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    if given.get("load_in_4bit") or (given.get("load_in_4bit") is False and built is not None):
        found["load_in_4bit"] = given["load_in_4bit"]
    config = given.get("quantization_config")
    if config is not None:
        content = json.dumps(config if isinstance(config, Mapping) else config.to_dict(), sort_keys=True, default=str)
        found["quantization_config"] = hashlib.sha256(content.encode()).hexdigest()[:12]
    return found


def similarity(model: EmbeddingModel) -> ScoringFunction | None:
    """What mteb compares vectors by; None leaves it to the model."""
    known = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}
    return known.get(str(model.similarity_fn_name))


def size(model: EmbeddingModel) -> dict[str, Any]:
    """Numbers of parameters and memory, from the loaded base model."""
    base = model[0].model
    total = int(base.num_parameters())
    family, config = family_of(base), base.config.get_text_config()
    layers = family.layers(base)
    chosen = getattr(config, "num_experts_per_tok", None)
    quantized = getattr(base, "is_quantized", False)
    active = None
    if chosen is not None and not quantized:
        experts = [(sum(p.numel() for p in one.experts.parameters()), family.expert_count(one)) for one in layers]
        active = round(total - sum(numbers * (1 - chosen / count) for numbers, count in experts))
    embeddings: torch.nn.Module | None = base.get_input_embeddings()
    return {
        "n_parameters": total,
        "n_active_parameters_override": active,
        "n_embedding_parameters": None if embeddings is None else sum(p.numel() for p in embeddings.parameters()),
        "memory_usage_mb": round(base.get_memory_footprint() / _MIB, 1),
    }


def origin(name: str, model: EmbeddingModel) -> dict[str, Any]:
    """Where a model comes from and what it was made of."""
    source, recipe = model[0].source, RECIPES.get(name)
    local = name.startswith("local/")
    license_ = recipe.license if recipe else source.license
    licenses = [name for option in get_args(Licenses) for name in (get_args(option) or (option,))]  # that mteb knows
    return {
        "release_date": recipe.released if recipe else None,
        "languages": list(recipe.languages) if recipe else ["eng-Latn"] if name == BUNDLED else None,
        "license": license_ if license_ in licenses else None,
        "open_weights": None if local else True,
        "public_training_code": None,
        "public_training_data": None,
        "framework": ["Sentence Transformers", "PyTorch"],
        "reference": None if local or name == BUNDLED else f"https://huggingface.co/{recipe.base if recipe else name}",
        "use_instructions": False,
        # recipes train nothing; the bundled model learned from another model's vectors, whose data count but are unknown
        "training_datasets": set() if recipe else None,
        "adapted_from": recipe.base if recipe else None if source.is_local else source.name_or_path,
        "citation": None,
    }


_WHOLE = 64 * 2**20
"""Files up to this size are digested whole; of larger ones the start, which describes the tensors, and samples."""
_START, _SAMPLES, _SAMPLE_BYTES = 2**20, 256, 2**16
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
_PLACES = ("base_model_name_or_path", "base_revision", "base_license")


def revision_of(
    name: str,
    module: SSMoE,
    own: EmbeddingSettings,
    *,
    revision: str | None = None,
    cache_folder: str | Path | None = None,
) -> str:
    """The revision of a model.

    Args:
        name: What it was loaded by.
        module: Its module.
        own: Its saved settings.
        revision: The hub revision it was loaded at, if not the default branch; of a plain base model it is known.
        cache_folder: The hub cache it was loaded from; likewise.

    Returns:
        The commit of a hub repository; for anything else 16 hexadecimal digits that depend on the settings, the spectral
        routers and saved calibration, the base model and what was changed of it in memory, but not on where any of it lies.
    """
    source = module.source
    if name == source.name_or_path:
        revision, cache_folder = revision or source.hub.revision, cache_folder or source.hub.cache_folder
    folder = tiny_folder() if name == BUNDLED else Path(name)
    adapter = adapter_on(module.model)
    changed = adapter is not None and source.adapter is None
    changed |= source.loaded is not None and not source.loaded.matches(module.model, module.tokenizer)
    if not folder.is_dir() and not changed:
        commit = cached_commit(name, revision, cache_folder)
        if commit is not None:
            return commit
    digest = hashlib.sha256(b"revision 1")
    config = module.get_config_dict() | own.saved()
    _add(digest, {name: value for name, value in config.items() if name not in _PLACES})
    _add(digest, module.routers.settings.as_dict() if module.routers else None)
    if (folder / TENSORS).is_file():
        _add_file(digest, folder / TENSORS)
    if source.is_local:
        base = Path(source.name_or_path)
        for path in sorted({path for pattern in _WEIGHTS for path in base.glob(pattern)}):
            _add(digest, path.name)
            _add_file(digest, path)
    else:
        commit = source.hub.revision or getattr(module.model.config, "_commit_hash", None)
        _add(digest, {"base": source.name_or_path, "revision": commit})
    if changed or adapter is not None:
        digest.update(Fingerprint.of(module.model, module.tokenizer, adapters=True).digest())
    return digest.hexdigest()[:16]


def _add(digest: Any, value: Any) -> None:
    digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\0")


def _add_file(digest: Any, path: Path) -> None:
    """Add a file: whole, or its start and samples."""
    size = path.stat().st_size
    _add(digest, size)
    with path.open("rb") as file:
        digest.update(file.read(_WHOLE if size <= _WHOLE else _START))
        for i in range(_SAMPLES if size > _WHOLE else 0):
            file.seek(i * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
