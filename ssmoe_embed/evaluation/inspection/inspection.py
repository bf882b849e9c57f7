"""All diagnostics of one model, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ssmoe_embed.embedding.base_model import spectral_routers
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings
from ssmoe_embed.evaluation.inspection.activations import Activations, LayerActivations, collect
from ssmoe_embed.evaluation.inspection.alignment import GateAlignment, GradientAlignment, gate_alignment
from ssmoe_embed.evaluation.inspection.clusters import Clusters, Projection, clusters
from ssmoe_embed.evaluation.inspection.measures import (
    DIRECTIONS,
    Collapse,
    CovarianceBound,
    Load,
    SubspaceOverlap,
    collapse,
    covariance_bound,
    dominant_bases,
    load,
    subspace_overlap,
    top_tokens,
)
from ssmoe_embed.evaluation.inspection.similarity import ExpertSimilarity, expert_similarities
from ssmoe_embed.evaluation.texts import TextSample
from ssmoe_embed.families import MoEFamily, MoELayer, family_of

_MATRICES = ("gate", "up", "down")


@dataclass(frozen=True)
class InspectionOptions:
    """What is measured.

    Attributes:
        alpha: The spectral router's share in the lemma and in the re-routed load.
        clusters: Number of k-means clusters.
        directions: Dominant directions of an expert's matrix.
        projection: How the map is made.
        tokens: Tokens listed for an expert.
        routings: Further routings, by name, whose load is measured; see `routing/named.py`.
        batch_size: Texts per forward pass.
        progress: Show progress bars.
    """

    alpha: float = 0.5
    clusters: int = 8
    directions: int = DIRECTIONS
    projection: Projection = Projection.TSNE
    tokens: int = 8
    routings: tuple[str, ...] = ()
    batch_size: int = 32
    progress: bool = False


@dataclass(frozen=True)
class LayerInspection:
    """One MoE layer.

    Attributes:
        layer: Index of the decoder layer.
        experts: `E`.
        learned: Collapse of the learned router.
        spectral: The same of the spectral router.
        covariance: Lemma 3.1.
        loads: The load by routing: `original`, `ssmoe` (the mix) and `ev` (the spectral router alone), and
            those that were named.
        tokens: Tokens that most set each expert apart, under the original routing.
        overlaps: Overlap of the experts' dominant subspaces by kind of matrix.
        gates: Alignment of the learned router's rows with those subspaces, likewise.
        gradients: Alignment of the experts' gradients, likewise; empty where that was not asked for.
        answers: How alike experts answer the tokens they share; None where single experts cannot be asked.
    """

    layer: int
    experts: int
    learned: Collapse
    spectral: Collapse
    covariance: CovarianceBound
    loads: dict[str, Load]
    tokens: list[list[str]]
    overlaps: dict[str, SubspaceOverlap]
    gates: dict[str, GateAlignment]
    gradients: dict[str, GradientAlignment]
    answers: ExpertSimilarity | None


@dataclass(frozen=True)
class Inspection:
    """A model.

    Attributes:
        model: What it was loaded by.
        texts: Texts read.
        tokens: Tokens read, padding left out.
        origin: What the texts are.
        hidden_size: `H`.
        alpha: The spectral router's share.
        spectral: How the spectral routers were made.
        labels: Label of each text, if there are any.
        layers: The MoE layers.
        clusters: The vectors' clusters by method.
    """

    model: str
    texts: int
    tokens: int
    origin: str
    hidden_size: int
    alpha: float
    spectral: dict[str, Any]
    labels: tuple[str, ...] | None
    layers: tuple[LayerInspection, ...]
    clusters: dict[str, Clusters]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def inspect_model(
    name: str,
    model: EmbeddingModel,
    sample: TextSample,
    options: InspectionOptions | None = None,
    *,
    gradients: Mapping[int, Sequence[GradientAlignment]] | None = None,
) -> Inspection:
    """Measure a model.

    Args:
        name: What it is called.
        model: The model.
        sample: The texts to read.
        options: What to measure.
        gradients: What `gradient_alignments` found of its language model.

    Raises:
        ValueError: The model is not one of this package's, has no MoE layer, or there are too few texts.
    """
    options = options or InspectionOptions()
    module = checked_module(model)
    own = module.settings
    routings = {
        "original": _settings(own, Method.SMOE),
        "ssmoe": _settings(own, Method.SSMOE, alpha=options.alpha),
        "ev": _settings(own, Method.SSMOE, alpha=1.0),
    } | {routing: _settings(own, Method.SMOE, routing=routing) for routing in options.routings}
    keywords: dict[str, Any] = {"batch_size": options.batch_size, "progress": options.progress}
    read = {routing: collect(module, sample.texts, chosen, **keywords) for routing, chosen in routings.items()}
    family, weights = family_of(module.model), module.routers.weights if module.routers else {}
    alike = expert_similarities(module, sample.texts, options.batch_size)
    return Inspection(
        model=name,
        texts=len(sample.texts),
        tokens=len(read["original"].tokens),
        origin=sample.origin,
        hidden_size=int(module.model.config.get_text_config().hidden_size),
        alpha=options.alpha,
        spectral=module.routers.settings.as_dict() if module.routers else {},
        labels=sample.labels,
        layers=tuple(
            inspect_layer(
                read,
                place,
                family=family,
                layer=layer,
                rows=weights[layer.index],
                options=options,
                told=partial(_decoded, module),
                matrices=_MATRICES,
                gradients=(gradients or {}).get(layer.index, ()),
                answers=alike.get(layer.index),
            )
            for place, layer in enumerate(family.layers(module.model))
        ),
        clusters={str(method): _clusters(model, module, method, sample, options) for method in Method},
    )


def checked_module(model: EmbeddingModel) -> SSMoE:
    """The model's module, with spectral routers, which are made if it has none.

    Raises:
        ValueError: The model is not one of this package's, or has no MoE layer in what is loaded.
    """
    module = model[0]
    if not isinstance(module, SSMoE):
        raise ValueError(f"{type(module).__name__} has no routers to look at; name a Mixture-of-Experts model.")
    if not family_of(module.model).layers(module.model):
        raise ValueError("None of the layers that are loaded has experts; load the model with a later hidden_layer.")
    if module.routers is None:
        return module.using(routers=spectral_routers(module.model, module.source, progress=False))
    return module


def _settings(own: EmbeddingSettings, method: Method, **changes: Any) -> EmbeddingSettings:
    """The model's settings with another method, uncalibrated."""
    plain = {"routing_signal": None, "routing": None, "calibration": Calibration.NONE}
    return own.changed(method=method, **(plain | changes))


def inspect_layer(
    read: Mapping[str, Activations],
    place: int,
    *,
    family: MoEFamily,
    layer: MoELayer,
    rows: torch.Tensor,
    options: InspectionOptions,
    told: Callable[[Sequence[int]], list[str]],
    matrices: Sequence[str],
    gradients: Sequence[GradientAlignment] = (),
    answers: ExpertSimilarity | None = None,
) -> LayerInspection:
    """Measure one layer.

    Args:
        read: What the routers said, by routing.
        place: Which of the layers with experts it is.
        family: The model's family.
        layer: The layer.
        rows: Its spectral router, `[E,H]`.
        options: What is measured.
        told: Names tokens.
        matrices: What an expert's matrices are called; if there are other ones, they are numbered.
        gradients: How gradients lie to the experts' directions, by kind of matrix.
        answers: How alike the experts answer.
    """
    E = family.expert_count(layer)
    seen: LayerActivations = read["original"].layers[place]
    bases = dominant_bases(lambda expert: family.expert_matrices(layer.block, expert), range(E), options.directions)
    router = family.router_weight(layer.router)
    found = top_tokens(read["original"].tokens, seen.chosen, E, options.tokens)
    names = matrices if len(bases) == len(matrices) else tuple(f"matrix {i}" for i in range(len(bases)))
    return LayerInspection(
        layer=layer.index,
        experts=E,
        learned=collapse(router, seen.learned),
        spectral=collapse(rows, seen.spectral),
        covariance=covariance_bound(seen.learned, seen.spectral, options.alpha),
        loads={routing: load(one.layers[place].chosen, E) for routing, one in read.items()},
        tokens=[told(ids) for ids in found],
        overlaps=dict(zip(names, map(subspace_overlap, bases), strict=True)),
        gates=dict(zip(names, (gate_alignment(router, one) for one in bases), strict=True)),
        gradients=dict(zip(names, gradients, strict=False)),
        answers=answers,
    )


def _decoded(module: SSMoE, ids: Sequence[int]) -> list[str]:
    """Tokens as text; those that are part of a character by their name in the vocabulary."""
    texts = [str(module.tokenizer.decode([token])) for token in ids]
    names = module.tokenizer.convert_ids_to_tokens(list(ids))
    return [name if "\N{REPLACEMENT CHARACTER}" in text else text for text, name in zip(texts, names, strict=True)]


def _clusters(
    model: EmbeddingModel, module: SSMoE, method: Method, sample: TextSample, options: InspectionOptions
) -> Clusters:
    """The clusters of one method's vectors."""
    view = model.using(_settings(module.settings, method, alpha=options.alpha), routers=module.routers)
    vectors = view.encode(
        list(sample.texts), batch_size=options.batch_size, convert_to_tensor=True, show_progress_bar=False
    )
    return clusters(vectors, options.clusters, known=sample.labels, projection=options.projection)
