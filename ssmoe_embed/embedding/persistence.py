"""The small repository on disk: configuration, spectral routers and calibration, pointing to the base model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.files import atomic_file, load_tensors, save_tensors
from ssmoe_embed.common.loading import HubOptions, check_backend
from ssmoe_embed.common.version import __version__
from ssmoe_embed.embedding.adapters import ADAPTER, Adapter, adapter_on, save_adapter, save_base
from ssmoe_embed.embedding.base_model import BaseModelSource, dtype_name, loading_bar, spectral_routers
from ssmoe_embed.embedding.calibration import Calibrations, calibration_tensors, calibrations_from
from ssmoe_embed.embedding.card import model_card
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.keywords import split
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.quantization.packed import is_packed
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class Parts:
    """What a module consists of."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: EmbeddingSettings
    routers: SpectralRouters | None
    calibrations: Calibrations
    source: BaseModelSource

    @property
    def base_revision(self) -> str | None:
        """The base model's commit on the hub, where known."""
        return self.source.hub.revision or getattr(self.model.config, "_commit_hash", None)

    def config(self) -> dict[str, Any]:
        """Everything of the saved configuration that is not a weight."""
        return {
            "base_model_name_or_path": self.source.name_or_path,
            "base_revision": self.base_revision,
            "base_license": self.source.license,
            "dtype": self.source.dtype,
            "quantization": self.source.quantization,
        } | self.settings.saved()

    def card(self, dimensions: int) -> str:
        """The model card, for vectors of that many dimensions."""
        spectral = self.routers.settings.as_dict() if self.routers else None
        return model_card(
            self.source, self.settings, dimensions=dimensions, revision=self.base_revision, spectral=spectral
        )


def parts_from_base(
    base: str | Path,
    options: dict[str, Any],
    *,
    routers: SpectralRouters | str | Path | None,
    progress: bool,
    processor_kwargs: dict[str, Any] | None = None,
    **loading: Any,
) -> Parts:
    """Load a base model and make the spectral routers that the settings need; no calibration is fitted.

    Args:
        base: Folder or hub id of the language model, or of an adapter that was trained on one.
        options: Fields of `HubOptions`, `SpectralSettings` and `EmbeddingSettings`.
        routers: Spectral routers made before, or their file.
        progress: Show progress bars.
        processor_kwargs: For the tokenizer; `model_max_length` sets `max_seq_length`.
        **loading: Further fields of `BaseModelSource`.

    Raises:
        UnsupportedModelError: The model is dense, or its family has no adapter.
        ValueError: An option is not known or has a value that is not allowed.
    """
    hub, spectral, settings = split(options)
    longest = (processor_kwargs or {}).get("model_max_length")
    limit = {} if longest is None else {"max_seq_length": longest}
    chosen = EmbeddingSettings.of(**(limit | settings))
    source = BaseModelSource.of(base, hub, processor_kwargs=processor_kwargs, **loading)
    with loading_bar(progress):
        model, tokenizer, source = source.load(chosen.hidden_layer)
    Encoder(model, tokenizer).check_layers(chosen)  # before the long work
    made = SpectralRouters.load(routers) if isinstance(routers, str | Path) else routers
    if made is None and chosen.needs_spectral_routers:
        made = spectral_routers(model, source, **spectral, progress=progress)
    return Parts(model, tokenizer, chosen, made, Calibrations(), source)


CONFIG = "ssmoe_config.json"
TENSORS = "ssmoe.safetensors"
OWN_BASE = "base"
"""Folder of a base model that is part of the repository itself."""
_REFERENCE_KEYS = ("base_model_name_or_path", "base_revision", "base_license", "dtype", "quantization", "adapter")


def save_parts(parts: Parts, folder: Path) -> None:
    """Write a module into a folder; the base model too if it is not known to be what it was loaded as.

    An adapter on it is written by itself.

    Raises:
        ValueError: The base model would have to be written and is in 4 bits, or its adapters are more than one active one.
    """
    source, adapter = parts.source, adapter_on(parts.model)
    changes: dict[str, Any] = {}
    known = source.loaded is not None and source.loaded.matches(parts.model, parts.tokenizer)
    included = source.included or not known
    if included:
        _refuse_packed(parts.model)
        save_base(parts.model, folder / OWN_BASE)
        parts.tokenizer.save_pretrained(folder / OWN_BASE)
    if adapter is not None:
        save_adapter(parts.model, adapter, folder / ADAPTER)
        changes["adapter"] = {"name": adapter.name, "wrapped": adapter.wrapped}
    moved = source.loaded is None or source.loaded.dtype != parts.model.dtype
    changes["dtype"] = dtype_name(parts.model.dtype) if moved else source.wanted_dtype
    save_references(parts, folder, included=included, **changes)
    require_this_package(folder / "config_sentence_transformers.json")


def _refuse_packed(model: PreTrainedModel) -> None:
    """Make sure that no rounded weights are written in the place of the trained ones."""
    if is_packed(model):
        raise ValueError(
            "This model carries its base model, or changed it, and it was rounded to 4 bits when it was loaded: saving "
            "it loses the trained weights. Load it without 4-bit (model_kwargs={'load_in_4bit': False}) and save that; "
            "for a model that is loaded in 4 bits each time: `ssmoe build BASE --include-base --quantize nf4`."
        )


def save_references(parts: Parts, folder: Path, *, included: bool, **changes: Any) -> None:
    """Write everything but the base model.

    Args:
        parts: The module's parts.
        folder: Where to.
        included: Point to the base model in the folder itself, not to where it came from.
        **changes: What is otherwise in the configuration than the parts say.
    """
    config = parts.config() | changes
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
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
    backend: str = "torch",
    **options: Any,
) -> Parts:
    """Load what `save_parts` wrote; see `SSMoE.load`.

    Args:
        cls: The module's class, whose loading of files is used.
        model_name_or_path: Folder or hub id.
        subfolder: Where in it.
        model_kwargs: For the base model.
        processor_kwargs: For the tokenizer.
        config_kwargs: Fields of `EmbeddingSettings`, and the rest for the base model's configuration.
        backend: Must be torch.
        **options: Fields of `HubOptions` for the small repository; other keywords of sentence-transformers are ignored.

    Raises:
        FileNotFoundError: A file of the model is missing.
        ValueError: A file is broken or does not fit the base model, or the backend is not torch.
    """
    check_backend(backend)
    hub = HubOptions.taken_from(options)
    place: dict[str, Any] = hub.keywords | {"subfolder": subfolder}
    del place["trust_remote_code"]
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
        base = _own_folder(cls, model_name_or_path, place, OWN_BASE)
    source = BaseModelSource(
        name_or_path=base,
        hub=replace(hub, revision=None if included else config.get("base_revision")),
        dtype=config.get("dtype"),
        quantization=config.get("quantization"),
        license=config.get("base_license"),
        included=included,
        adapter=_own_folder(cls, model_name_or_path, place, ADAPTER) if "adapter" in config else None,
        adapted=Adapter(**config.get("adapter", {})),
        model_kwargs=model_kwargs,
        processor_kwargs=processor_kwargs,
        config_kwargs=base_config_kwargs,
    )
    model, tokenizer, source = source.load(settings.hidden_layer)
    routers = SpectralRouters.from_tensors(tensors, metadata) if "spectral" in metadata else None
    return Parts(model, tokenizer, settings, routers, calibrations_from(tensors), source)


def _own_folder(cls: type[Module], name: str, place: dict[str, Any], folder: str) -> str:
    """A folder of the repository itself."""
    found = cls.load_dir_path(name, **place | {"subfolder": str(Path(place["subfolder"]) / folder)})
    if found is None or not Path(found).is_dir():
        raise FileNotFoundError(f"{name} lacks its folder {folder!r}; copy or download it again.")
    return str(found)


def split_settings(keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are fields of `EmbeddingSettings`, and the others."""
    fields = EmbeddingSettings.__dataclass_fields__
    own = {name: value for name, value in keywords.items() if name in fields}
    return own, {name: value for name, value in keywords.items() if name not in fields}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; the same content gives the same bytes."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def require_this_package(path: Path) -> None:
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
