"""`ssmoe ablate` of a CLIP-MoE: its spectral routers against other rows, and the choice of experts against controls.

Measured on the package's emoji: names by drawings and drawings by names, in Twemoji's style, of the concepts that the
bundled model was trained on and of those that were held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.tables import Report, Table, csv_text, points, signed
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.evaluation.ablation.measures import Difference, seeded_difference
from ssmoe_embed.evaluation.ablation.variants import ORIGINAL, SPECTRAL, VARIANTS, Variant, routers_of
from ssmoe_embed.evaluation.texts import spread
from ssmoe_embed.evaluation.vision.encoder import ImageCorruption
from ssmoe_embed.evaluation.vision.inspection import collect_tower, drawn
from ssmoe_embed.routing import EqualWeights, LeastSimilar, RandomRouting, RoutingPolicy
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.vision.module import SSMoEVision
from ssmoe_embed.vision.routing import PAPER, ClipMoeTower, Tower, VisionRouting, spectral_policies, spectral_routers

_RELEASE = Variant("release", "as the release: α = 1, raw signs, c_proj reshaped")
_EQUAL = Variant("equal-weights", "the router's own two experts, half and half")
_RANDOM = Variant("random-pairs", "two random experts, half and half", is_random=True)
_LEAST = Variant("least-similar", "the two that the spectral router likes least")
CONTROLS = (_RELEASE, _EQUAL, _RANDOM, _LEAST)
VISION_VARIANTS = (*(one for one in VARIANTS if one.control is None), *CONTROLS)
"""Those of language models but for the two whose routers must tell choices and weights, and the controls of the paper's
vision part: a softmax over four experts weighs any two of them nearly half and half."""
RESAMPLES = 2_000
_Rights: TypeAlias = dict[tuple[str, str, str], tuple[float, Difference | None]]
"""Points of 100, and the difference from the spectral router, by variant, set and measure."""
_SETS = {"seen concepts": False, "held-out concepts": True}
_CUTS = {"image→text @1": 1, "image→text @5": 5, "text→image @1": 1, "text→image @5": 5}


@dataclass(frozen=True)
class VisionAblation:
    """What one variant does, one entry per seed.

    Attributes:
        variant: The variant.
        common: Share of the experts in common with the learned router, by tower.
        hits: Whether each example was right `[n]`, by set and measure.
    """

    variant: Variant
    common: tuple[dict[Tower, float], ...]
    hits: tuple[dict[tuple[str, str], NDArray[np.float64]], ...]

    def shared(self, tower: Tower) -> float:
        """The mean over seeds of a tower's share of experts in common."""
        return fmean(common[tower] for common in self.common)


def find_vision_variants(names: Sequence[str] | None) -> list[Variant]:
    """The variants of these names, with `original` and `ev`; all by default.

    Raises:
        ValueError: A name is not known.
    """
    known = {one.name: one for one in VISION_VARIANTS}
    for name in names or ():
        if name not in known:
            raise ValueError(unknown("variant", name, known))
    wanted = {ORIGINAL, SPECTRAL, *(names or known)}
    return [one for one in VISION_VARIANTS if one.name in wanted]


def ablate_towers(
    model: EmbeddingModel,
    variants: Sequence[Variant],
    *,
    alpha: float = 0.5,
    seeds: int = 3,
    count: int = 200,
    corruption: ImageCorruption | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> list[VisionAblation]:
    """Measure variants of both towers' routing.

    Args:
        model: The model.
        variants: See `find_vision_variants`.
        alpha: The spectral router's share in all but the controls.
        seeds: Draws of each random variant.
        count: Emoji of each set, at most.
        corruption: Noise on the images.
        batch_size: Inputs per forward pass.
        progress: Show a progress bar.
    """
    from tqdm.auto import tqdm

    module = model[0]
    assert isinstance(module, SSMoEVision)
    settings = VisionRouting(alpha=alpha)
    own = spectral_routers(module.model, settings, progress=False)
    samples = {name: _sample(held_out, count, corruption) for name, held_out in _SETS.items()}
    found = []
    for variant in tqdm(variants, desc="Variants", disable=not progress):
        drawn = range(seeds if variant.is_random else 1)
        one = [
            _measured(module, own, samples, _policies(variant, module, own, settings, seed), batch_size)
            for seed in drawn
        ]
        found.append(VisionAblation(variant, tuple(common for common, _ in one), tuple(hits for _, hits in one)))
    return found


def _sample(held_out: bool, count: int, corruption: ImageCorruption | None) -> tuple[list[str], list[Any]]:
    """Names of emoji, and Twemoji's drawings of them."""
    chosen = spread([(one, picture) for one, picture in drawn() if one["held_out"] == held_out], count)
    shown = [picture if corruption is None else corruption.apply(picture) for _, picture in chosen]
    return [f"a picture of {one['label']}" for one, _ in chosen], shown


def _policies(
    variant: Variant, module: SSMoEVision, own: Mapping[Tower, SpectralRouters], settings: VisionRouting, seed: int
) -> dict[Tower, RoutingPolicy | None]:
    """How both towers are routed."""
    if variant in (_EQUAL, _RANDOM):
        k = module.model.config.vision_config.num_experts_per_tok
        return {tower: EqualWeights(None if variant is _EQUAL else RandomRouting(seed), k) for tower in Tower}
    if variant is _LEAST:
        return {tower: LeastSimilar(own[tower]) for tower in Tower}
    if variant is _RELEASE:
        return dict(spectral_policies(spectral_routers(module.model, PAPER, progress=False), PAPER))
    if not variant.routes:
        return dict.fromkeys(Tower)
    routers = {tower: routers_of(variant, tower.of(module.model), own[tower], seed, ClipMoeTower()) for tower in Tower}
    return dict(spectral_policies(routers, settings))


def _measured(
    module: SSMoEVision,
    own: Mapping[Tower, SpectralRouters],
    samples: Mapping[str, tuple[list[str], list[Any]]],
    policies: Mapping[Tower, RoutingPolicy | None],
    batch_size: int,
) -> tuple[dict[Tower, float], dict[tuple[str, str], NDArray[np.float64]]]:
    """Experts in common with the learned routers, and what was right."""
    shared: dict[Tower, list[float]] = {tower: [] for tower in Tower}
    hits = {}
    for name, (texts, pictures) in samples.items():
        vectors = {}
        for tower, inputs in ((Tower.TEXT, texts), (Tower.VISION, pictures)):
            options: dict[str, Any] = {"policy": policies[tower], "batch_size": batch_size}
            read, found = collect_tower(module, tower, inputs, own[tower], **options)
            vectors[tower] = functional.normalize(found, dim=1)
            for one in read.layers:
                own_choice = one.learned.topk(one.chosen.shape[1], dim=1).indices  # [N,k]
                common = (one.chosen[:, :, None] == own_choice[:, None, :]).any(dim=2)  # [N,k]
                shared[tower].append(float(common.float().mean()))
        cosines = (vectors[Tower.VISION] @ vectors[Tower.TEXT].T).double().numpy()  # [n,n], drawing i has name i
        for measure, cut in _CUTS.items():
            asked = cosines if measure.startswith("image") else cosines.T
            hits[name, measure] = within(asked, cut)
    return {tower: fmean(values) for tower, values in shared.items()}, hits


def within(asked: NDArray[np.float64], cut: int) -> NDArray[np.float64]:
    """Whether the right one, on the diagonal of `[n,n]`, is among the first so many: `[n]`.

    What ties with it comes before it, or a model that cannot tell anything apart would always be right.
    """
    before = (asked >= asked.diagonal()[:, None]).sum(axis=1) - 1
    return (before < cut).astype(np.float64)


def write_vision_report(found: Sequence[VisionAblation], output: Path, title: str) -> list[Path]:
    """Write `ablation.md` and `ablation.csv` into a folder."""
    spectral = next(one for one in found if one.variant.name == SPECTRAL)
    rights: _Rights = {}
    for one in found:
        for key in one.hits[0]:
            value, gap = 100 * fmean(float(hits[key].mean()) for hits in one.hits), None
            if one is not spectral:
                each = np.stack([hits[key] - spectral.hits[0][key] for hits in one.hits], axis=1)  # [n,S]
                gap = _above(each)
            rights[(one.variant.name, *key)] = (value, gap)
    return write_files(
        output, {"ablation.md": _report(found, rights, title).markdown(), "ablation.csv": _csv(found, rights)}
    )


def _above(each: NDArray[np.float64]) -> Difference:
    """How much more often examples are right under seeds, `[n,S]`: the mean and its 95 % interval, in points of 100."""
    found = seeded_difference(len(each), lambda drawn: drawn @ each / drawn.sum(axis=1, keepdims=True), RESAMPLES)
    return Difference(100 * found.value, 100 * found.low, 100 * found.high)


def _report(found: Sequence[VisionAblation], rights: _Rights, title: str) -> Report:
    tables = []
    for name in _SETS:
        rows = []
        for one in found:
            cells = []
            for measure in _CUTS:
                value, gap = rights[one.variant.name, name, measure]
                clear = "" if gap is None else f" ({signed(gap.value)}{' *' if gap.is_clear else ''})"
                cells.append(points(value) + clear)
            rows.append((one.variant.name, *cells))
        count = len(found[0].hits[0][name, next(iter(_CUTS))])
        tables.append(Table(("variant", *_CUTS), tuple(rows), title=f"{name}, {count} emoji", texts=1))
    shares = [(one.variant.name, *(f"{one.shared(tower):.3f}" for tower in Tower), one.variant.tells) for one in found]
    heads = ("variant", *(f"{tower} tower" for tower in Tower), "what it is")
    choices = Table(heads, tuple(shares), title="Share of the experts in common with the learned routers", texts=1)
    legend = (
        "Points of 100; in brackets the difference from ev, with a star where its 95 % interval, of a bootstrap over emoji "
        "and seeds, leaves out zero. No correction is made for the number of lines. ablation.csv has the intervals."
    )
    return Report(title, (legend, *tables, choices))


def _csv(found: Sequence[VisionAblation], rights: _Rights) -> str:
    rows: list[tuple[Any, ...]] = []
    for one in found:
        named = (one.variant.name, len(one.hits))
        rows += [(*named, "choices", f"{tower} tower", one.shared(tower), None, None, None) for tower in Tower]
        for key in one.hits[0]:
            value, gap = rights[(one.variant.name, *key)]
            bounds = (None, None, None) if gap is None else (gap.value, gap.low, gap.high)
            rows.append((*named, *key, value, *bounds))
    return csv_text(("variant", "seeds", "set", "measure", "value", "against_ev", "low", "high"), rows)
