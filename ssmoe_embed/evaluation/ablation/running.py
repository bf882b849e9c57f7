"""Running an ablation: every variant on every measure; what is on disk is not measured again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.evaluation.ablation.measures import Agreement, Likelihood, Readings, TaskRuns, agreement, likelihood
from ssmoe_embed.evaluation.ablation.variants import Control, Variant, controlled, routers_of
from ssmoe_embed.evaluation.inspection.activations import checked_module, collect
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.tasks.corruption import Corruption
from ssmoe_embed.evaluation.texts import Corpora
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model.loading import load as load_language_model
from ssmoe_embed.routing import SpectralRouting, reroute
from ssmoe_embed.routing.named import policy_named
from ssmoe_embed.spectral.routers import SpectralRouters

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


@dataclass(frozen=True)
class AblationOptions:
    """What is measured.

    Attributes:
        alphas: Shares of the spectral router; tasks are measured at the first one only.
        seeds: How often what is random is drawn.
        task_seeds: How many of these draws are measured on tasks, which take the longest; None for all.
        tasks: Tasks of `find_tasks`; none for no embeddings.
        calibration_texts: Texts that each variant's calibration is fitted on.
        corruption: For the stability of choices.
        batch_size: Texts per forward pass.
        progress: Show progress bars.
    """

    alphas: tuple[float, ...] = (0.5,)
    seeds: int = 5
    task_seeds: int | None = None
    tasks: tuple[str | AbsTask, ...] = ()
    calibration_texts: int = 512
    corruption: Corruption = field(default_factory=lambda: Corruption(rate=0.2))
    batch_size: int = 32
    progress: bool = False

    @property
    def seeds_of_tasks(self) -> int:
        """Draws that are measured on tasks."""
        return self.seeds if self.task_seeds is None else min(self.seeds, self.task_seeds)


@dataclass(frozen=True)
class MeasuredVariant:
    """A variant at one α, by seed.

    Attributes:
        variant: The variant.
        alpha: The spectral router's share.
        likelihoods: By kind of text, one a seed; empty for a model without a head.
        agreements: One a seed; none of a routing by name, which need not be a choice by scores.
    """

    variant: Variant
    alpha: float
    likelihoods: dict[str, list[Likelihood]]
    agreements: list[Agreement]


@dataclass(frozen=True)
class Ablation:
    """What came of it.

    Attributes:
        model: What the model was loaded by.
        spectral: How its spectral routers were made.
        options: What was measured.
        corpora: The texts.
        variants: The variants.
        measured: Perplexity and choices.
        tasks: The embeddings' tasks, if any were asked for.
        notes: What could not be measured, and why.
    """

    model: str
    spectral: dict[str, Any]
    options: AblationOptions
    corpora: Corpora
    variants: tuple[Variant, ...]
    measured: tuple[MeasuredVariant, ...]
    tasks: TaskRuns | None
    notes: tuple[str, ...]

    def at(self, variant: str, alpha: float) -> MeasuredVariant:
        """One variant at one α; what is no mix is the same at every α."""
        return next(
            one
            for one in self.measured
            if one.variant.name == variant and (one.alpha == alpha or not one.variant.mixes)
        )


def ablate(
    name: str,
    model: EvaluatedModel,
    variants: Sequence[Variant],
    corpora: Corpora,
    output: Path,
    *,
    options: AblationOptions,
) -> Ablation:
    """Measure the variants of a model's spectral routers.

    Args:
        name: What to call the model.
        model: The model; it is the same afterwards.
        variants: See `find_variants`.
        corpora: The texts for perplexity and for the stability of choices.
        output: The result folder.
        options: What is measured.

    Raises:
        ValueError: The model has no MoE layer, a task is not known, or a control does not exist for its family.
    """
    if options.seeds < 1 or not options.alphas:
        raise ValueError(
            f"seeds={options.seeds}, alphas={options.alphas}: there is nothing to measure; give one at least."
        )
    module = checked_module(model.model)
    own = module.routers
    assert own is not None  # checked_module makes them
    seeds = {variant.name: range(options.seeds if variant.is_random else 1) for variant in variants}
    cells = [
        (variant, seed, routers_of(variant, module.model, own, seed))
        for variant in variants
        for seed in seeds[variant.name]
    ]
    tasks = None
    if options.tasks:
        tasks = TaskRuns(model, output / "tasks", options.tasks, options.alphas[0], options.calibration_texts)
    deciding = repr((corpora, own.settings.as_dict(), str(module.settings.mix), model.loading))
    digest = hashlib.sha256(deciding.encode()).hexdigest()[:12]
    places = output / "likelihood" / f"{model.name.replace('/', '__')}-{model.revision}-{digest}"
    likelihoods, notes = _likelihoods(model, cells, corpora, places, options)
    if tasks is not None:
        chosen = [cell for cell in cells if cell[1] < options.seeds_of_tasks]
        for variant, seed, routers in tqdm(chosen, desc="Tasks", unit="variant", disable=not options.progress):
            tasks.measure(variant, seed, routers, batch_size=options.batch_size)
        notes += tasks.failures
    (first, documents), (second, others) = corpora.first, corpora.second
    corrupted = [options.corruption.apply(text) for text in documents]
    reading: dict[str, Any] = {"inputs": True, "batch_size": options.batch_size, "progress": options.progress}
    readings = Readings(*(collect(module, texts, **reading) for texts in (documents, corrupted, others)))
    score, mix = family_of(module.model).score, module.settings.mix
    measured = []
    for variant in variants:
        drawn = [routers for one, _, routers in cells if one is variant and variant.routing is None]
        for alpha in _alphas(variant, options):
            chosen_at = 0.0 if variant.control is Control.WEIGHTS else alpha  # the share that decides what is chosen
            by_kind = {}
            for kind in (first, second):
                keys = [(variant.name, seed, alpha, kind) for seed in seeds[variant.name]]
                if found := [likelihoods[key] for key in keys if key in likelihoods]:
                    by_kind[kind] = found
            agreements = [agreement(readings, routers, chosen_at, score, mix=mix) for routers in drawn]
            measured.append(MeasuredVariant(variant, alpha, by_kind, agreements))
    return Ablation(
        name, own.settings.as_dict(), options, corpora, tuple(variants), tuple(measured), tasks, tuple(notes)
    )


def _alphas(variant: Variant, options: AblationOptions) -> tuple[float, ...]:
    """The shares that a variant is measured at."""
    return options.alphas if variant.mixes else (0.0,)


def _likelihoods(
    model: EvaluatedModel,
    cells: Sequence[tuple[Variant, int, SpectralRouters]],
    corpora: Corpora,
    folder: Path,
    options: AblationOptions,
) -> tuple[dict[tuple[str, int, float, str], Likelihood], list[str]]:
    """The likelihood of every document by variant, seed, α and kind of text; and why there is none."""
    module = model.model[0]
    found: dict[tuple[str, int, float, str], Likelihood] = {}
    waiting = []
    for variant, seed, routers in cells:
        name = variant.name
        if variant.routing is not None:  # whose name may not fit a file
            name = f"routing-{hashlib.sha256(variant.routing.encode()).hexdigest()[:12]}"
        for alpha in _alphas(variant, options):
            path = folder / f"{name}-{seed}@{alpha:g}.json"
            if path.is_file():
                for kind, values in json.loads(path.read_text(encoding="utf-8")).items():
                    found[variant.name, seed, alpha, kind] = Likelihood(
                        **{name: tuple(each) for name, each in values.items()}
                    )
            else:
                waiting.append((variant, seed, alpha, routers, path))
    if not waiting:
        return found, []
    try:
        language_model = load_language_model(
            module.source.name_or_path,
            dtype=str(module.model.dtype).removeprefix("torch."),
            **module.source.hub.keywords,
        )
    except ValueError as error:
        return found, [f"No perplexity: {error}"]
    language_model = language_model.to(module.model.device)
    for variant, seed, alpha, routers, path in tqdm(waiting, desc="Perplexity", disable=not options.progress):
        mix = SpectralRouting(routers, alpha, module.settings.mix)
        named = variant.routing
        policy = mix if named is None else policy_named(named, language_model, module.tokenizer)
        values = {}
        with reroute(language_model, policy), controlled(language_model, mix, variant.control):
            for kind, documents in (corpora.first, corpora.second):
                one = likelihood(language_model, module.tokenizer, documents, batch_size=options.batch_size)
                values[kind] = found[variant.name, seed, alpha, kind] = one
        with atomic_file(path) as file:
            file.write(json.dumps({kind: asdict(one) for kind, one in values.items()}).encode())
    return found, []
