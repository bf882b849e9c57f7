"""Bringing the features of a block to one scale, with factors that are fitted once and saved.

The paper's release standardises over the current batch, which makes a text's vector depend on its neighbours. Here the
factors come from a fixed sample of texts; `calibration="batch"` exists to reproduce the release.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ssmoe_embed.common.files import load_tensors, save_tensors
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.settings import (
    Block,
    Calibration,
    Combination,
    EmbeddingSettings,
    FeatureSettings,
    ForwardSettings,
)
from ssmoe_embed.embedding.tokenization import check_texts

_PREFIX = "calibration."
MINIMUM_TEXTS = 2
_RELEASE_EPSILON = 1e-8


@dataclass(frozen=True)
class BlockCalibration:
    """The fitted factors of one block of features.

    Attributes:
        mean: `[D]`, float32.
        factor: What the centred features are multiplied by: `[D]` to standardise, `[D,D]` to whiten.
    """

    mean: torch.Tensor
    factor: torch.Tensor
    _placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def fit(cls, features: torch.Tensor, kind: Calibration) -> BlockCalibration:
        """Fit the factors that standardise or whiten, on the features `[M,D]` of `M` sample texts, at least two.

        Whitening takes `Σ^(-1/2)`, with Σ shrunk by Ledoit and Wolf's rule so that it has full rank.

        Raises:
            ValueError: There are fewer than two texts.
        """
        _check_count(len(features))
        features = features.double().cpu()
        epsilon, tiny = torch.finfo(features.dtype).eps, torch.finfo(features.dtype).tiny
        if kind is Calibration.STANDARDIZE:
            deviation = features.std(dim=0, correction=0)
            varies = deviation > features.abs().amax(dim=0) * epsilon * 4
            factor = torch.where(varies, 1 / deviation.clamp_min(tiny), 0.0)  # [D]
        else:
            from sklearn.covariance import ledoit_wolf

            values, vectors = torch.linalg.eigh(torch.from_numpy(ledoit_wolf(features.numpy())[0]))  # [D], [D,D]
            floor = values.amax() * epsilon * len(values)
            factor = (vectors * torch.where(values > floor, values.clamp_min(floor).rsqrt(), 0.0)) @ vectors.T
        return cls(features.mean(dim=0).float(), factor.float())

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        """The calibrated features, `[B,D] → [B,D]`."""
        if block.device not in self._placed:
            with torch.inference_mode(False):  # the copies must serve training too
                self._placed[block.device] = (self.mean.to(block.device), self.factor.to(block.device))
        mean, factor = self._placed[block.device]
        centred = block - mean
        return centred * factor if factor.ndim == 1 else centred @ factor


class Calibrations:
    """The fitted factors that a model has.

    Models with other spectral routers share those of blocks that no spectral router has a part in.
    """

    def __init__(self, factors: Mapping[str, BlockCalibration] | None = None) -> None:
        """Start with factors by name, see `Block.factors`."""
        self._learned = self._spectral = dict(factors or {})

    @property
    def factors(self) -> dict[str, BlockCalibration]:
        """All of them by name."""
        return self._learned | self._spectral

    def of(self, block: Block, kind: Calibration) -> BlockCalibration | None:
        """The factors of one block; None if they were not fitted."""
        return self._home(block).get(block.factors(kind))

    def add(self, block: Block, kind: Calibration, factors: BlockCalibration) -> None:
        """Keep the factors of one block."""
        self._home(block)[block.factors(kind)] = factors

    def with_other_routers(self) -> Calibrations:
        """Those of the same model with other spectral routers."""
        other = Calibrations()
        other._learned = self._learned
        return other

    def _home(self, block: Block) -> dict[str, BlockCalibration]:
        return self._spectral if block.is_spectral else self._learned

    def vectors(self, blocks: Mapping[Block, torch.Tensor], settings: FeatureSettings) -> torch.Tensor:
        """One vector per text: its features calibrated and joined.

        MoEE (https://arxiv.org/abs/2410.10814) adds the blocks' cosines with weights; `sum` puts that into the vectors:
        with each block of unit length times √weight, one dot product is the weighted sum of cosines, so any vector index
        serves it.

        Args:
            blocks: The features `[B,D]` of every block that the settings have, in their order.
            settings: How they become vectors.

        Returns:
            float32 `[B,ΣD]`.

        Raises:
            ValueError: The calibration is missing.
        """
        parts = []
        for block, features in blocks.items():
            part = self.apply(block, features, settings.calibration)
            if settings.combination is Combination.SUM:
                weight = 1.0 if block.signal is None else settings.routing_weight
                part = F.normalize(part, dim=-1) * weight**0.5
            parts.append(part)
        return torch.cat(parts, dim=-1)

    def apply(self, block: Block, features: torch.Tensor, kind: Calibration) -> torch.Tensor:
        """The features `[B,D]` of one block on the calibrated scale.

        Of a `batch`, as the paper's release does: mean 0 per feature over its texts, divided by the sample standard
        deviation plus 1e-8.

        Raises:
            ValueError: The factors are missing, or a `batch` has one text, whose features have no spread.
        """
        if kind is Calibration.NONE:
            return features
        if kind is Calibration.BATCH:
            if len(features) < MINIMUM_TEXTS:
                raise ValueError(
                    "calibration='batch' standardises over the texts of one batch and this batch has one; encode at least "
                    "two texts at once with batch_size of at least 2 (their number should not leave a remainder of 1), or "
                    "choose calibration='standardize'."
                )
            return (features - features.mean(dim=0)) / (features.std(dim=0) + _RELEASE_EPSILON)
        factors = self.of(block, kind)
        if factors is None:
            raise ValueError(
                f"This model has no calibration for {block.factors(kind)!r}; call .fit_calibration() on the module "
                "(model[0]), load it with ssmoe_embed.load(...), which does so, or choose calibration='none'."
            )
        return factors.apply(features)


def calibration_tensors(calibrations: Calibrations) -> dict[str, torch.Tensor]:
    """Fitted factors of several blocks, by their names on disk."""
    stored = {}
    for name, calibration in calibrations.factors.items():
        stored[f"{_PREFIX}{name}.mean"] = calibration.mean
        stored[f"{_PREFIX}{name}.factor"] = calibration.factor
    return stored


def calibrations_from(tensors: Mapping[str, torch.Tensor]) -> Calibrations:
    """The inverse of `calibration_tensors`; tensors of other names are ignored.

    Raises:
        ValueError: One of a pair of factors is missing, or not finite.
    """
    names = sorted({name.removeprefix(_PREFIX).rpartition(".")[0] for name in tensors if name.startswith(_PREFIX)})
    found = {}
    for name in names:
        pair = [tensors.get(f"{_PREFIX}{name}.{part}") for part in ("mean", "factor")]
        if any(part is None or not torch.isfinite(part).all() for part in pair):
            raise ValueError(
                f"The calibration {name!r} is incomplete or not finite; rebuild the model with `ssmoe build`."
            )
        found[name] = BlockCalibration(*pair)  # type: ignore[arg-type]  # none is None here
    return Calibrations(found)


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
    """Fit the factors that are not there of every block of some settings, and keep them; see `SSMoE.fit_calibration`.

    With `refit`, those that are there are fitted again. In the folder of `notes` features are kept, for a run that goes on
    where one with the same arguments was killed.
    """
    passes: defaultdict[ForwardSettings, dict[tuple[Block, Calibration], None]] = defaultdict(dict)
    for variant in variants:
        kind, blocks = variant.calibration, variant.blocks
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
    _check_count(len(sample))
    return sample


def _check_count(texts: int) -> None:
    """Refuse too few texts, whose features have no spread."""
    if texts < MINIMUM_TEXTS:
        raise ValueError(
            f"{texts} calibration text(s) are too few to fit calibration factors; pass at least {MINIMUM_TEXTS}, better "
            "about 2,000, or choose calibration='none'."
        )


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
        rows = []
        for batch in some:
            tokens = {name: value.to(encoder.model.device) for name, value in encoder.tokenize(batch, forward).items()}
            reading = encoder.read(tokens, forward)
            rows.append([encoder.features(reading, block).cpu() for block in blocks])
            bar.update(len(batch))
        parts.append({str(number): torch.cat(column) for number, column in enumerate(zip(*rows, strict=True))})
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
