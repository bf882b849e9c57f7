"""Fitting the calibration of one or several settings on sample texts, each forward pass run once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.blocks import block_names, forward_pass
from ssmoe_embed.embedding.calibration import MINIMUM_TEXTS, BlockCalibration
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings
from ssmoe_embed.embedding.tokenization import check_texts

if TYPE_CHECKING:
    from ssmoe_embed.embedding.module import SSMoE


def fit_calibrations(
    module: SSMoE,
    texts: Iterable[str] | None,
    variants: Sequence[EmbeddingSettings],
    *,
    batch_size: int,
    progress: bool,
) -> dict[str, BlockCalibration]:
    """Calibration factors by block name, for every variant of the settings.

    Args:
        module: The model; its settings are the same afterwards.
        texts: Sample texts; None for those that come with the package.
        variants: Settings with a fitted calibration.
        batch_size: Texts a forward pass.
        progress: Show a progress bar.
    """
    sample = check_sample(calibration_texts() if texts is None else texts)
    sample.sort(key=lambda text: (len(text), text))
    passes: defaultdict[str, list[EmbeddingSettings]] = defaultdict(list)
    for variant in variants:
        passes[forward_pass(variant)].append(variant)
    before, fitted = module.settings, {}
    with tqdm(total=len(sample) * len(passes), desc="Calibration", unit="text", disable=not progress) as bar:
        try:
            for shared in passes.values():
                module.configure(**shared[0].as_dict())
                for (name, kind), block in _features(module, sample, shared, batch_size, bar).items():
                    fitted[name] = BlockCalibration.fit(block, kind)
        finally:
            module.configure(**before.as_dict())
    return fitted


def check_sample(texts: Iterable[str]) -> list[str]:
    """The calibration texts as a list.

    Raises:
        ValueError: They are one string, fewer than two, or not all strings.
    """
    if isinstance(texts, str):
        raise ValueError("The calibration texts are one string; pass a list of texts.")
    sample = list(texts)
    check_texts(sample, "the calibration texts")
    if len(sample) < MINIMUM_TEXTS:
        raise ValueError(
            f"{len(sample)} calibration text(s) are too few to fit calibration factors; pass at least {MINIMUM_TEXTS}, "
            "better about 2,000, or choose calibration='none'."
        )
    return sample


@torch.inference_mode()
def _features(
    module: SSMoE, texts: Sequence[str], variants: Sequence[EmbeddingSettings], batch_size: int, bar: tqdm[Any]
) -> dict[tuple[str, Calibration], torch.Tensor]:
    """The features `[M,D]` of every block that the variants need, by the block's name and kind of calibration."""
    parts: defaultdict[tuple[str, Calibration], list[torch.Tensor]] = defaultdict(list)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        features = {name: value.to(module.model.device) for name, value in module.preprocess(batch).items()}
        reading = module.read(features)
        found = {}
        for variant in variants:
            names = block_names(variant)
            for block, value in module.blocks(reading, variant).items():
                found[names[block], variant.calibration] = value.cpu()
        for key, value in found.items():
            parts[key].append(value)
        bar.update(len(batch))
    return {key: torch.cat(values) for key, values in parts.items()}
