"""Loading a model, and building its small repository: spectral routers, calibration, settings and a card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from typing_extensions import Unpack

from ssmoe_embed.common.files import size_of, workplace
from ssmoe_embed.common.loading import HubOptions, check_backend, check_device
from ssmoe_embed.common.version import __version__
from ssmoe_embed.data import BUNDLED, BUNDLED_CLIP, bundled_folder
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.embedding.calibration import check_sample
from ssmoe_embed.embedding.keywords import LoadKeywords, ModelKeywords, SentenceTransformerKeywords, split_keywords
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.persistence import OWN_BASE, save_references
from ssmoe_embed.embedding.settings import PRESET_SPECTRAL, EmbeddingSettings
from ssmoe_embed.families import family_of, load_config
from ssmoe_embed.hub.names import MODULES, RECIPES, Kind, find, local
from ssmoe_embed.quantization.settings import Quantization, QuantizationSettings
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings


def build(
    base: str | Path,
    output: str | Path,
    *,
    prompts: Sequence[str] = (),
    calibration_texts: Sequence[str] | None = None,
    model_kwargs: dict[str, Any] | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    license: str | None = None,  # noqa: A002 (the model card's own word)
    include_base: bool = False,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    inspect: Callable[[SSMoE], None] | None = None,
    **options: Unpack[ModelKeywords],
) -> Path:
    """Build an embedding model from a MoE language model and save it as a small repository.

    Nothing appears under `output` until all is done, and an error or Ctrl-C leaves nothing. Where `kill -9` or a power
    failure ended a build, the same call goes on: finished layers' spectral routers are not made again, and calibration texts
    that were read are not read again. The calibration is fitted for all methods, so that the method can be changed when the
    model is loaded.

    Args:
        base: Folder or hub id of the language model; or a recipe's name, for that recipe's base model and settings.
        output: The new folder.
        prompts: Further prompts to fit the calibration for.
        calibration_texts: The texts to fit it on; by default the sample that comes with the package.
        model_kwargs: For the base model: `dtype`, `device_map`, ….
        dtype: The dtype that the built model loads its base in; by default the checkpoint's own.
        quantize: Keep the base model's weights in 4 bits, experts included, now and when the built model is loaded: `nf4`,
            `nf4-experts` or `paper-nf4`, see `Quantization`.
        license: The base model's licence, for the model card.
        include_base: Copy the base model, a local folder, into the repository instead of pointing to it.
        batch_size: The batch size; by default 32, or what `quantize` says.
        overwrite: Replace what is under `output`.
        progress: Show progress bars.
        inspect: Called with the module once its base model is loaded.
        **options: Fields of `HubOptions` for the base model (`revision`, `token`, …), of `EmbeddingSettings` and of
            `SpectralSettings`.

    Returns:
        The folder.

    Raises:
        FileExistsError: `output` exists and `overwrite` is false.
        FileNotFoundError: `base` is a folder that does not exist.
        OSError: `output` cannot be written to, or its disk has too little room.
        UnsupportedModelError: The base model is dense, or its family has no adapter.
        ValueError: An option is not known or has a value that is not allowed, or `base` is an embedding model already.
    """
    base, output = _base(base), Path(output).expanduser()
    given: dict[str, Any] = dict(options)
    if base in RECIPES:
        chosen = RECIPES[base]
        base, license, given = chosen.base, license or chosen.license, chosen.settings | given  # noqa: A001
    hub, spectral, chosen_settings = split_keywords(given)
    settings = EmbeddingSettings.of(**chosen_settings)
    if quantize is not None:
        QuantizationSettings.of(quantize)
    variants = _variants(settings, prompts)
    if calibration_texts is not None:
        calibration_texts = check_sample(calibration_texts)
    _check_places(Path(base), output, include_base)
    loading: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "license": license, "model_kwargs": model_kwargs}
    config = load_config(base, **hub.loading)
    family_of(config)
    task = _task(
        base, config, hub, [spectral, [one.as_dict() for one in variants], calibration_texts, batch_size, loading]
    )
    with workplace(output, overwrite=overwrite, room=_room(base, config, include_base), task=task) as work:
        routers = SpectralRouters.from_checkpoint(base, **spectral, progress=progress, notes=work.notes, **hub.keywords)
        module = SSMoE.from_base(
            base,
            routers=routers,
            progress=progress,
            **loading,
            **hub.keywords,
            **(settings.as_dict() | {"calibration": "none"}),
        ).using(calibration=settings.calibration)
        if inspect is not None:
            inspect(module)
        size = batch_size or module.default_batch_size or 32
        fitting: dict[str, Any] = {"batch_size": size, "progress": progress, "notes": work.notes}
        module.fit_calibration(calibration_texts, variants=variants, **fitting)
        EmbeddingModel(modules=[module]).save_pretrained(str(work.new))
        if include_base:
            shutil.copytree(base, work.new / OWN_BASE)
            module.source = replace(module.source, included=True)
            save_references(module.parts, work.new, included=True)
            (work.new / "README.md").write_text(module.card(), encoding="utf-8")
    return output


def _base(name: str | Path) -> str:
    """The folder, hub id or recipe name of a language model.

    Raises:
        FileNotFoundError: It is a folder that does not exist.
        ValueError: It is an embedding model already.
    """
    base = local(name)
    if base == BUNDLED or (Path(base) / MODULES).is_file():
        raise ValueError(
            f"{base} is an embedding model already: ssmoe_embed.load({base!r}) loads it, and takes other settings. `ssmoe "
            "build` makes one of a language model, such as allenai/OLMoE-1B-7B-0924."
        )
    return base


def _task(base: str, config: Any, hub: HubOptions, choices: list[Any]) -> str:
    """What identifies a build: the same base model, choices and versions give the same bytes."""
    weights = sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else []
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
    origin = [base, stats, config.to_dict(), getattr(config, "_commit_hash", None), hub.revision]
    content = json.dumps([origin, choices, __version__, torch.__version__], default=repr, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _room(base: str, config: Any, include_base: bool) -> int:
    """About how many bytes a build writes: spectral routers, once more as notes, and the base model if it is copied."""
    text = family_of(config).text_config(config)
    counts = [value for name, value in text.to_dict().items() if "expert" in name and isinstance(value, int)]
    routers = 4 * text.num_hidden_layers * max(counts, default=0) * text.hidden_size  # float32 [L,E,H]
    return 2 * routers + (size_of(base) if include_base else 0)


def _check_places(base: Path, output: Path, include_base: bool) -> None:
    """Make sure that writing the output cannot touch the base model."""
    if not base.is_dir():
        if include_base:
            raise ValueError(
                f"include_base copies a local folder, and {str(base)!r} is none; download the model first."
            )
        return
    source, target = base.resolve(), output.resolve()
    if source == target or target in source.parents or source in target.parents:
        raise ValueError(
            f"The output {output} and the base model's folder {base} lie in one another; choose another output."
        )


def _variants(chosen: EmbeddingSettings, prompts: Sequence[str]) -> list[EmbeddingSettings]:
    """Every method with every prompt, the chosen settings first."""
    kinds = [
        chosen.changed(method=method, prompt=prompt, routing_signal=None)
        for prompt in dict.fromkeys([chosen.prompt, *prompts])
        for method in Method
    ]
    return [chosen, *kinds]


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
    hub, _, settings = split_keywords(given, SentenceTransformerKeywords.__annotations__)
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
