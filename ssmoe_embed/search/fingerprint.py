"""Telling whether a model is the one an index was made with, on whatever device and wherever it lies on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmoe_embed.embedding.bundled import BundledEncoder
from ssmoe_embed.search.manifest import WrongModelError
from ssmoe_embed.search.vectors import unit

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from ssmoe_embed.embedding.module import SSMoE

_PROBES = (
    "Which of these two models made the vectors?",
    "A cat sat in the sun on the warm stones of the old harbour wall.",
    "The function returns None if the key is not found, 42 otherwise.",
)
_APART = 1e-3
"""1 − cosine of a probe's vectors by two devices or number types stays below this."""
_DIGITS = 4
_LETTERS_OF_A_REVISION = 12

Fingerprint = dict[str, Any]


def model_identity(model: SentenceTransformer | BundledEncoder) -> Fingerprint:
    """What can be told of a model without running it, as JSON values: name, revision, prompts and settings."""
    if isinstance(model, BundledEncoder):
        return model.identity
    module = own_module(model)
    own = {} if module is None else _own(module)
    inner = getattr(model[0], "auto_model", None)
    named = getattr(inner, "name_or_path", None) or getattr(model.model_card_data, "base_model", None)
    return {
        "name": own.get("base") or (_short(str(named)) if named else type(model[0]).__name__),
        "revision": own.get("revision") or getattr(getattr(inner, "config", None), "_commit_hash", None),
        "prompts": {key: value for key, value in sorted(model.prompts.items()) if value},
        "settings": own.get("settings", {}),
    }


def own_module(model: SentenceTransformer) -> SSMoE | None:
    """The module of this package that a model begins with, if it does."""
    from ssmoe_embed.embedding.module import SSMoE

    return model[0] if isinstance(model[0], SSMoE) else None


def model_fingerprint(model: SentenceTransformer | BundledEncoder) -> Fingerprint:
    """What tells one model and its settings from others, as JSON values.

    Of every model: its identity, its dimension, and the vectors of three fixed texts as documents and of one as a query. Of
    a model of this package also a sketch of the spectral routers and the calibration that its vectors depend on.

    Raises:
        ValueError: The model's vectors depend on their neighbours in a batch, so that they cannot be kept.
    """
    module = None if isinstance(model, BundledEncoder) else own_module(model)
    plain: dict[str, Any] = {"show_progress_bar": False, "convert_to_numpy": True}
    identity = model_identity(model)
    documents = model.encode_document(list(_PROBES), **plain)
    query = model.encode_query([_PROBES[0]], **plain)
    probes = unit(np.concatenate([documents, query]))  # [4,D]
    return identity | {
        "dimension": int(probes.shape[1]),
        "sketch": {} if module is None else _sketches(module),
        "probes": [[round(float(number), _DIGITS + 2) for number in probe] for probe in probes],
    }


def check_model(model: SentenceTransformer | BundledEncoder, wanted: Mapping[str, Any], folder: Path) -> None:
    """Make sure that a model is the one whose fingerprint an index carries.

    Raises:
        WrongModelError: It is another one; the message names both and says what differs.
    """
    found = model_fingerprint(model)
    reason = difference(wanted, found)
    if reason:
        raise WrongModelError(
            f"The index in {folder} was made with {describe(wanted)}, and this model is {describe(found)}: {reason}. Open "
            "it with the model it was made with, or index the corpus with this one into another folder."
        )


def describe(fingerprint: Mapping[str, Any]) -> str:
    """A model in a few words."""
    revision = f" at {str(fingerprint['revision'])[:_LETTERS_OF_A_REVISION]}" if fingerprint.get("revision") else ""
    settings = fingerprint.get("settings") or {}
    shown = ", ".join(f"{name}={settings[name]}" for name in ("method", "alpha", "prompt") if name in settings)
    return f"{fingerprint.get('name') or 'an unnamed model'}{revision}{f' ({shown})' if shown else ''}"


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """In what a fingerprint that was found differs from the one that is wanted, in words; nothing if it does not."""
    if wanted["dimension"] != found["dimension"]:
        return f"its vectors have {found['dimension']} dimensions instead of {wanted['dimension']}"
    if wanted["revision"] and found["revision"] and wanted["revision"] != found["revision"]:
        return f"its revision is {found['revision']} instead of {wanted['revision']}"
    if wanted["settings"] != found["settings"]:
        from ssmoe_embed.embedding.settings import EmbeddingSettings

        usual = EmbeddingSettings().as_dict()  # of settings that did not exist when the index was made
        old, new = usual | dict(wanted["settings"]), usual | dict(found["settings"])
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if names:
            return "; ".join(f"{name} is {new.get(name)!r} instead of {old.get(name)!r}" for name in names)
    apart = [
        name
        for name in sorted({*wanted["sketch"], *found["sketch"]})
        if not _alike(name, wanted["sketch"], found["sketch"])
    ]
    if apart:
        return f"its {', '.join(apart)} differ"
    cosines = (np.array(wanted["probes"]) * np.array(found["probes"])).sum(axis=1)
    if (1 - cosines > _APART).any():
        return (
            f"it gives other vectors for the same texts (cosine down to {cosines.min():.4f}), so its weights were changed "
            "or replaced since"
        )
    return ""


def _alike(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two sketches of one group of tensors agree up to rounding."""
    if name not in wanted or name not in found:
        return False
    first, second = np.array(wanted[name]), np.array(found[name])
    return first.shape == second.shape and bool(np.linalg.norm(first - second) <= _APART * np.linalg.norm(first))


def _own(module: SSMoE) -> Fingerprint:
    """Base model, revision and settings of a model of this package."""
    from ssmoe_embed.embedding.settings import Calibration

    settings = module.settings
    if settings.calibration is Calibration.BATCH:
        raise ValueError(
            "calibration='batch' makes a text's vector depend on its neighbours, so it cannot be kept in an index; load the "
            "model with calibration='standardize'."
        )
    config = module.get_config_dict()
    return {
        "base": _short(str(config["base_model_name_or_path"])),
        "revision": config["base_revision"],
        "settings": json.loads(json.dumps(settings.saved())),
    }


def _sketches(module: SSMoE) -> dict[str, list[float]]:
    """What the vectors of a model of this package depend on beside its base model and settings, in a few numbers each."""
    settings, sketch = module.settings, {}
    if settings.needs_spectral_routers and module.routers is not None:
        sketch["spectral routers"] = _sketch(list(module.routers.weights.values()))
    found = [module.calibrations.of(block, settings.calibration) for block in settings.blocks]
    factors = [one for one in found if one is not None]
    if settings.calibration.is_fitted:
        sketch["calibration factors"] = _sketch([part for factor in factors for part in (factor.mean, factor.factor)])
    return sketch


def _sketch(tensors: list[torch.Tensor]) -> list[float]:
    """Of each tensor its length, its sum and its sum with alternating signs."""
    import torch

    numbers: list[float] = []
    for tensor in tensors:
        flat = tensor.detach().double().cpu().flatten()
        signs = 1.0 - 2.0 * (torch.arange(len(flat)) % 2).double()
        numbers += [float(flat.norm()), float(flat.sum()), float(flat @ signs)]
    return numbers


def _short(name: str) -> str:
    """A hub id as it is; of a folder, which lies elsewhere on another machine, its last two parts."""
    return "/".join(Path(name).parts[-2:]) if Path(name).is_absolute() else name
