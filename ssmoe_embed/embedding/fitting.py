"""Fitting the calibration of one or several settings on sample texts, each forward pass run once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.calibration import MINIMUM_TEXTS, BlockCalibration, Calibrations
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.features import Block, block_features, blocks_of
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings, ForwardSettings
from ssmoe_embed.embedding.tokenization import check_texts


def fit_calibrations(
    encoder: Encoder,
    calibrations: Calibrations,
    texts: Iterable[str] | None,
    variants: Sequence[EmbeddingSettings],
    *,
    batch_size: int,
    progress: bool,
    refit: bool = False,
) -> None:
    """Fit the factors of every block of some settings that are not there, and keep them.

    Args:
        encoder: What reads the texts.
        calibrations: Where the factors are kept.
        texts: Sample texts; None for those that come with the package.
        variants: The settings; those without a fitted calibration need nothing.
        batch_size: The batch size.
        progress: Show a progress bar.
        refit: Fit again what is there already.
    """
    passes: defaultdict[ForwardSettings, dict[tuple[Block, Calibration], None]] = defaultdict(dict)
    for variant in variants:
        kind, blocks = variant.calibration, blocks_of(variant)
        if kind.is_fitted and (refit or any(calibrations.of(block, kind) is None for block in blocks)):
            passes[variant.forward] |= dict.fromkeys((block, kind) for block in blocks)
    if not passes:
        return
    sample = check_sample(calibration_texts() if texts is None else texts)
    sample.sort(key=lambda text: (len(text), text))
    with tqdm(total=len(sample) * len(passes), desc="Calibration", unit="text", disable=not progress) as bar:
        for forward, wanted in passes.items():
            features = list(dict.fromkeys(block for block, _ in wanted))
            found = _features(encoder, sample, forward, features, batch_size=batch_size, bar=bar)
            for block, kind in wanted:
                calibrations.add(block, kind, BlockCalibration.fit(found[block], kind))


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
    encoder: Encoder,
    texts: Sequence[str],
    forward: ForwardSettings,
    blocks: Sequence[Block],
    *,
    batch_size: int,
    bar: tqdm[Any],
) -> dict[Block, torch.Tensor]:
    """The features `[M,D]` of blocks of one forward pass over `M` texts, on the CPU."""
    parts: defaultdict[Block, list[torch.Tensor]] = defaultdict(list)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        tokens = {name: value.to(encoder.model.device) for name, value in encoder.tokenize(batch, forward).items()}
        reading = encoder.read(tokens, forward)
        for block in blocks:
            parts[block].append(block_features(reading, block, encoder).cpu())
        bar.update(len(batch))
    return {block: torch.cat(values) for block, values in parts.items()}
