"""What a model's record for mteb says of how it was loaded, its size and its origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, get_args

import torch
from mteb.models.model_meta import ScoringFunction

from ssmoe_embed.data import BUNDLED
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.families import family_of
from ssmoe_embed.hub.recipes import RECIPES

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
    return {
        "release_date": recipe.released if recipe else None,
        "languages": list(recipe.languages) if recipe else ["eng-Latn"] if name == BUNDLED else None,
        "license": license_ if license_ in _licenses() else None,
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


def _licenses() -> tuple[str, ...]:
    """The licences that mteb knows by name."""
    from mteb.types import Licenses

    return tuple(name for option in get_args(Licenses) for name in (get_args(option) or (option,)))
