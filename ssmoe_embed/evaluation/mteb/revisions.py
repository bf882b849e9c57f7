"""What tells two models of one name apart: the hub's commit, or a digest of what determines the vectors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ssmoe_embed.data import BUNDLED, tiny_folder
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.persistence import TENSORS
from ssmoe_embed.embedding.settings import EmbeddingSettings

_WHOLE = 64 * 2**20
"""Files up to this size are digested whole; of larger ones the start, which describes the tensors, and samples."""
_SAMPLES, _SAMPLE_BYTES = 256, 2**16
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
_COMMIT_LENGTH = 40
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
        routers and saved calibration, and the base model, but not on where any of it lies.
    """
    source = module.source
    if name == source.name_or_path:
        revision, cache_folder = revision or source.hub.revision, cache_folder or source.hub.cache_folder
    folder = tiny_folder() if name == BUNDLED else Path(name)
    if not folder.is_dir():
        commit = _commit(name, revision, cache_folder)
        if commit is not None:
            return commit
    digest = hashlib.sha256(b"revision 1")
    config = module.get_config_dict() | own.as_dict()
    _add(digest, {name: value for name, value in config.items() if name not in _PLACES})
    _add(digest, module.routers.settings.as_dict() if module.routers else None)
    if (folder / TENSORS).is_file():
        _add_file(digest, folder / TENSORS)
    if source.is_local:
        _add_folder(digest, Path(source.name_or_path))
    else:
        commit = source.hub.revision or getattr(module.model.config, "_commit_hash", None)
        _add(digest, {"base": source.name_or_path, "revision": commit})
    return digest.hexdigest()[:16]


def _commit(name: str, revision: str | None, cache_folder: str | Path | None) -> str | None:
    """The commit that a hub repository's cached files are of."""
    for file in ("modules.json", "config.json"):
        try:
            path = try_to_load_from_cache(name, file, cache_dir=cache_folder, revision=revision)
        except HFValidationError:
            return None
        if isinstance(path, str) and len(Path(path).parent.name) == _COMMIT_LENGTH:
            return Path(path).parent.name
    return None


def _add(digest: Any, value: Any) -> None:
    digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\0")


def _add_folder(digest: Any, folder: Path) -> None:
    """Add a model's weights, configuration and tokenizer."""
    for path in sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)}):
        _add(digest, path.name)
        _add_file(digest, path)


def _add_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    _add(digest, size)
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            _add_samples(digest, file, size)


def _add_samples(digest: Any, file: IO[bytes], size: int) -> None:
    digest.update(file.read(2**20))
    for i in range(_SAMPLES):
        file.seek(i * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
        digest.update(file.read(_SAMPLE_BYTES))
