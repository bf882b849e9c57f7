"""Fitting the calibration of one or several settings on sample texts, each forward pass run once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ssmoe_embed.common.files import load_tensors, save_tensors
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.calibration import MINIMUM_TEXTS, BlockCalibration, Calibrations
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.features import Block, block_features, blocks_of
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings, ForwardSettings
from ssmoe_embed.embedding.tokenization import check_texts

_CPU_CHARACTERS = 8192
"""Of a batch on a CPU, about 2,000 tokens: more at once take longer, since their activations leave the cache."""
_NOTED = 8
"""Batches after which features are noted."""


def fit_calibrations(
    encoder: Encoder,
    calibrations: Calibrations,
    texts: Iterable[str] | None,
    variants: Sequence[EmbeddingSettings],
    *,
    batch_size: int,
    progress: bool,
    refit: bool = False,
    notes: Path | None = None,
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
        notes: A folder in which features are kept, for a run that goes on where one with the same arguments was killed.
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
        for number, (forward, wanted) in enumerate(passes.items()):
            features = list(dict.fromkeys(block for block, _ in wanted))
            kept = None if notes is None else notes / f"features-{number}"
            found = _features(encoder, sample, forward, features, batch_size=batch_size, bar=bar, notes=kept)
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
    notes: Path | None = None,
) -> dict[Block, torch.Tensor]:
    """The features `[M,D]` of blocks of one forward pass over `M` texts, on the CPU."""
    batches = _batches(texts, batch_size, _CPU_CHARACTERS if encoder.model.device.type == "cpu" else None)
    parts: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(batches), _NOTED):
        some = batches[start : start + _NOTED]
        kept = None if notes is None else notes.with_name(f"{notes.name}-{start}.safetensors")
        if kept is not None and kept.is_file():
            parts.append(load_tensors(kept)[0])
            bar.update(sum(map(len, some)))
            continue
        found: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        for batch in some:
            tokens = {name: value.to(encoder.model.device) for name, value in encoder.tokenize(batch, forward).items()}
            reading = encoder.read(tokens, forward)
            for number, block in enumerate(blocks):
                found[str(number)].append(block_features(reading, block, encoder).cpu())
            bar.update(len(batch))
        parts.append({number: torch.cat(values) for number, values in found.items()})
        if kept is not None:
            save_tensors(kept, parts[-1], {})
    return {block: torch.cat([part[str(number)] for part in parts]) for number, block in enumerate(blocks)}


def _batches(texts: Sequence[str], size: int, characters: int | None) -> list[list[str]]:
    """Texts of rising length in batches of at most `size`, and of about so many characters, padding included."""
    batches: list[list[str]] = []
    for text in texts:
        last = batches[-1] if batches else []
        full = len(last) == size or (characters is not None and (len(last) + 1) * len(text) > characters)
        if not last or full:
            batches.append([text])
        else:
            last.append(text)
    return batches
