"""`load`: a folder, a hub id or a recipe's name becomes a `SentenceTransformer`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from typing_extensions import Unpack

from ssmoe_embed.common.devices import check_backend, check_device
from ssmoe_embed.common.hub import HubOptions
from ssmoe_embed.data import BUNDLED, BUNDLED_CLIP, bundled_folder
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.embedding.keywords import LoadKeywords, SentenceTransformerKeywords, split
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import PRESET_SPECTRAL
from ssmoe_embed.hub.building import build
from ssmoe_embed.hub.names import Kind, find
from ssmoe_embed.quantization.settings import Quantization
from ssmoe_embed.spectral.settings import SpectralSettings


def load(
    name: str | Path = BUNDLED,
    *,
    device: str | None = None,
    load_in_4bit: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
    **options: Unpack[LoadKeywords],
) -> EmbeddingModel:
    """Load an embedding model.

    The name is looked up as a folder, then among the recipes, then on the hub. A folder or hub id may also be a plain MoE
    language model, which is turned into an embedding model in memory. A recipe is built once into the user's cache. The
    default, `ssmoe/tiny`, comes with the package and never asks the hub.

    Args:
        name: Folder, hub id or recipe name.
        device: Where to run; by default the fastest device at hand.
        load_in_4bit: Keep the base model's weights in 4 bits (NF4), experts included; by default as it was built.
        model_kwargs: For the base model: `dtype`, `device_map`, `attn_implementation`, `quantization_config`, ….
        progress: Show progress bars on what takes long.
        **options: Fields of `HubOptions` (`revision`, `token`, …) for what `name` names; keywords of `SentenceTransformer`
            (`truncate_dim`, `similarity_fn_name`, `prompts`, …); and fields of `EmbeddingSettings` that override the saved
            ones (`method`, `alpha`, `prompt`, …). Calibration factors that those need and the model does not have are
            fitted on the package's sample of texts.

    Returns:
        A `SentenceTransformer`.

    Raises:
        FileNotFoundError: There is no model of that name.
        ValueError: An option is not known or has a value that is not allowed, or the device is not there.
    """
    if device is not None:
        check_device(device)
    given: dict[str, Any] = dict(options)
    own = {one: given.pop(one) for one in SentenceTransformerKeywords.__annotations__ if one in given}
    hub, _, settings = split(given, SentenceTransformerKeywords.__annotations__)
    check_backend(own.pop("backend", "torch"))
    if load_in_4bit is not None:
        model_kwargs = (model_kwargs or {}) | {"load_in_4bit": load_in_4bit}
    quantize = str(Quantization.NF4) if load_in_4bit else None
    found = find(name, hub)
    place = found.place
    if found.kind is Kind.BASE:
        loading = {"model_kwargs": model_kwargs, "processor_kwargs": own.pop("processor_kwargs", None)}
        module = SSMoE.from_base(place, quantize=quantize, progress=progress, **loading, **given)
        mapped = device is None and (model_kwargs or {}).get("device_map") is not None
        return EmbeddingModel(modules=[module], device=str(module.model.device) if mapped else device, **own)
    for one in SpectralSettings.__dataclass_fields__.keys() & given.keys():
        raise ValueError(f"{one} is fixed when a model is built; build another one with `ssmoe build BASE`.")
    if found.kind is Kind.RECIPE:
        place, hub = _built(place, hub, quantize, progress, model_kwargs), replace(hub, revision=None)
    hub = replace(hub, local_files_only=hub.local_files_only or Path(place).is_dir())
    with loading_bar(progress and place not in {str(bundled_folder(one)) for one in (BUNDLED, BUNDLED_CLIP)}):
        model = EmbeddingModel(
            place, device=device, model_kwargs=model_kwargs, config_kwargs=settings, **hub.keywords, **own
        )
    if isinstance(model[0], SSMoE):  # any other sentence-transformers model is taken as it is
        _check_preset(settings.get("method"), model[0])
        model[0].fit_calibration(progress=progress)
    return model


def _check_preset(method: Any, module: SSMoE) -> None:
    """Refuse a preset whose spectral routers are made in another way than the model's."""
    made = module.routers.settings.as_dict() if module.routers else {}
    for name, value in PRESET_SPECTRAL.get(str(method), {}).items():
        if made.get(name) != value:
            raise ValueError(
                f"method={str(method)!r} takes spectral routers of {name}={value!r}, and this model's have "
                f"{made.get(name)!r}; build another one with `ssmoe build BASE --method {method}`."
            )


def _built(
    name: str, hub: HubOptions, quantize: str | None, progress: bool, model_kwargs: dict[str, Any] | None
) -> str:
    """The folder of a recipe's model in the user's cache, built the first time; one in 4 bits has another."""
    variant = "-".join([name, *filter(None, (quantize, hub.revision))])
    folder = user_cache_path("ssmoe_embed") / "built" / variant
    if not folder.is_dir():
        build(name, folder, quantize=quantize, model_kwargs=model_kwargs, progress=progress, **hub.keywords)
    return str(folder)
