"""Building the small repository of a model: spectral routers, calibration, settings and a card, pointing to the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.files import atomic_folder
from ssmoe_embed.embedding.card import model_card
from ssmoe_embed.embedding.fitting import check_sample
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.persistence import OWN_BASE, save_references
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.quantization.settings import QuantizationSettings
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings


def build(
    base: str | Path,
    output: str | Path,
    *,
    prompts: Sequence[str] = (),
    calibration_texts: Sequence[str] | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    license: str | None = None,  # noqa: A002 (the model card's own word)
    include_base: bool = False,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    inspect: Callable[[SSMoE], None] | None = None,
    **settings: Any,
) -> Path:
    """Build an embedding model from a MoE language model and save it as a small repository.

    Nothing appears under `output` until all is done. The calibration is fitted for all five methods, so that the method
    can be changed when the model is loaded.

    Args:
        base: Folder or hub id of the language model.
        output: The new folder.
        prompts: Further prompts to fit the calibration for.
        calibration_texts: The texts to fit it on; by default the sample that comes with the package.
        revision: Hub revision of the base model.
        token: Hub token.
        cache_folder: Hub cache.
        local_files_only: Never ask the hub.
        trust_remote_code: Allow code that comes with the base model.
        model_kwargs: For the base model: `dtype`, `device_map`, ….
        dtype: The dtype that the built model loads its base in; by default the checkpoint's own.
        quantize: Keep the base model's weights in 4 bits, experts included, now and when the built model is loaded: `nf4`,
            `nf4-experts` or `paper-nf4`, see `Quantization`.
        license: The base model's licence, for the model card.
        include_base: Copy the base model, a local folder, into the repository instead of pointing to it.
        batch_size: Texts a forward pass; by default 32, or what `quantize` stands for.
        overwrite: Replace what is under `output`.
        progress: Show progress bars.
        inspect: Called with the module once its base model is loaded.
        **settings: Fields of `EmbeddingSettings` and `SpectralSettings`.

    Returns:
        The folder.

    Raises:
        FileExistsError: `output` exists and `overwrite` is false.
        UnsupportedModelError: The base model is dense, or its family has no adapter.
        ValueError: A setting is not known or has a value that is not allowed.
    """
    spectral = {name: settings.pop(name) for name in SpectralSettings.__dataclass_fields__ if name in settings}
    SpectralSettings(**spectral)
    for name in settings:
        if name not in EmbeddingSettings.__dataclass_fields__:
            known = [*EmbeddingSettings.__dataclass_fields__, *SpectralSettings.__dataclass_fields__]
            raise ValueError(unknown("setting", name, known))
    chosen = EmbeddingSettings.of(**settings)
    if quantize is not None:
        QuantizationSettings.of(quantize)
    variants = _variants(chosen, prompts)
    if calibration_texts is not None:
        check_sample(calibration_texts)
    _check_places(Path(base), Path(output), include_base)
    hub: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": local_files_only}
    with atomic_folder(output, overwrite=overwrite) as folder:
        routers = SpectralRouters.from_checkpoint(
            base, **spectral, cache_dir=cache_folder, trust_remote_code=trust_remote_code, progress=progress, **hub
        )
        module = SSMoE.from_base(
            base,
            routers=routers,
            dtype=dtype,
            quantize=quantize,
            license=license,
            cache_folder=cache_folder,
            trust_remote_code=trust_remote_code,
            model_kwargs=model_kwargs,
            progress=progress,
            **hub,
            **(chosen.as_dict() | {"calibration": "none"}),
        ).configure(calibration=chosen.calibration)
        if inspect is not None:
            inspect(module)
        size = batch_size or module.default_batch_size or 32
        module.fit_calibration(calibration_texts, variants=variants, batch_size=size, progress=progress)
        EmbeddingModel(modules=[module]).save_pretrained(str(folder))
        if include_base:
            shutil.copytree(base, folder / OWN_BASE)
            module.source = replace(module.source, included=True)
            save_references(module, folder, included=True)
            (folder / "README.md").write_text(model_card(module), encoding="utf-8")
    return Path(output)


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
