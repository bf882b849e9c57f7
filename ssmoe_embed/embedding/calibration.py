"""Bringing the features of a block to one scale, with factors that are fitted once and saved.

The paper's release standardises over the current batch, which makes a text's vector depend on its neighbours. Here the
factors come from a fixed sample of texts; `standardize_batch` exists to reproduce the release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ssmoe_embed.embedding.features import Block, combine
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings

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
        """Fit the factors on the features of sample texts.

        Args:
            features: `[M,D]` for `M` texts.
            kind: `standardize` or `whiten`.

        Raises:
            ValueError: There are fewer than two texts.
        """
        if len(features) < MINIMUM_TEXTS:
            raise ValueError(
                f"{len(features)} calibration text(s) are too few to fit calibration={str(kind)!r}; pass at least "
                f"{MINIMUM_TEXTS}, better about 2,000, or choose calibration='none'."
            )
        features = features.double().cpu()
        factor = _inverse_deviation(features) if kind is Calibration.STANDARDIZE else _whitening(features)
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


def embedding_vectors(
    blocks: Mapping[Block, torch.Tensor], settings: EmbeddingSettings, calibrations: Calibrations, dtype: str
) -> torch.Tensor:
    """The vectors of texts: their features calibrated and joined.

    Args:
        blocks: The features `[B,D]` of every block of the settings.
        settings: How they become vectors.
        calibrations: Fitted factors.
        dtype: What the model computed in, for the message.

    Returns:
        float32 `[B,D]`.

    Raises:
        ValueError: The calibration is missing, or a vector is not finite.
    """
    calibrated = {block.part: _calibrated(block, part, settings, calibrations) for block, part in blocks.items()}
    embedding = combine(calibrated, settings.combination, settings.routing_weight)  # [B,D]
    if not bool(torch.isfinite(embedding).all()):
        rows = [int(row) for row in (~torch.isfinite(embedding)).any(dim=1).nonzero().flatten()]
        raise ValueError(
            f"The vectors of texts {rows} of the batch are not finite in {dtype}; "
            "load the model with model_kwargs={'dtype': 'bfloat16'} or 'float32'."
        )
    return embedding


def _calibrated(
    block: Block, features: torch.Tensor, settings: EmbeddingSettings, calibrations: Calibrations
) -> torch.Tensor:
    """The features `[B,D]` of one block on the calibrated scale."""
    kind = settings.calibration
    if kind is Calibration.NONE:
        return features
    if kind is Calibration.BATCH:
        return standardize_batch(features)
    factors = calibrations.of(block, kind)
    if factors is None:
        raise ValueError(
            f"This model has no calibration for {block.factors(kind)!r}; call .fit_calibration() on the module (model[0]), "
            "load it with ssmoe_embed.load(...), which does so, or choose calibration='none'."
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


def standardize_batch(block: torch.Tensor) -> torch.Tensor:
    """The features over the texts of this batch as the paper's release standardises them, `[B,D] → [B,D]`.

    Mean 0 per feature, divided by the sample standard deviation plus 1e-8.

    Raises:
        ValueError: The batch has one text, whose features have no spread.
    """
    if len(block) < MINIMUM_TEXTS:
        raise ValueError(
            "calibration='batch' standardises over the texts of one batch and this batch has one; encode at least two texts "
            "at once with batch_size of at least 2 (their number should not leave a remainder of 1), or choose "
            "calibration='standardize'."
        )
    return (block - block.mean(dim=0)) / (block.std(dim=0) + _RELEASE_EPSILON)


def _inverse_deviation(features: torch.Tensor) -> torch.Tensor:
    """1/σ per feature `[M,D] → [D]`; 0 for a feature that does not vary."""
    deviation = features.std(dim=0, correction=0)
    floor = features.abs().amax(dim=0) * torch.finfo(features.dtype).eps * 4
    return torch.where(deviation > floor, 1 / deviation.clamp_min(torch.finfo(features.dtype).tiny), 0.0)


def _whitening(features: torch.Tensor) -> torch.Tensor:
    """`Σ^(-1/2) [D,D]` of the features `[M,D]`, with Σ shrunk by Ledoit and Wolf's rule so that it has full rank."""
    from sklearn.covariance import ledoit_wolf

    covariance = torch.from_numpy(ledoit_wolf(features.numpy())[0])
    values, vectors = torch.linalg.eigh(covariance)  # [D], [D,D]
    floor = values.amax() * torch.finfo(values.dtype).eps * len(values)
    inverse = torch.where(values > floor, values.clamp_min(floor).rsqrt(), 0.0)
    return (vectors * inverse) @ vectors.T
