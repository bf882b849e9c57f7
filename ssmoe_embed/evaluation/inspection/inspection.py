"""All diagnostics of one model, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings
from ssmoe_embed.evaluation.inspection.activations import Activations, checked_module, collect
from ssmoe_embed.evaluation.inspection.alignment import GateAlignment, GradientAlignment, gate_alignment
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
from ssmoe_embed.families import MoEFamily, family_of
from ssmoe_embed.spectral.routers import SpectralRouters


class Projection(Choice):
    """How vectors are laid out on a plane."""

    TSNE = "tsne"
    """t-SNE, of scikit-learn."""
    UMAP = "umap"
    """UMAP; needs the package umap-learn."""


@dataclass(frozen=True)
class Clusters:
    """How well the vectors of `B` texts fall into clusters (figure 7 of https://arxiv.org/abs/2605.30992), and a map.

    Attributes:
        silhouette: Of the k-means clusters, -1 to 1: higher is more clumped.
        davies_bouldin: Of the k-means clusters: lower is more clumped.
        by_label: Silhouette of the texts' known labels, where there are any: whether the clumps mean something.
        labels: The k-means cluster of each text, `B` numbers.
        places: Each text's place on the map, `B × 2`.
    """

    silhouette: float
    davies_bouldin: float
    by_label: float | None
    labels: tuple[int, ...]
    places: tuple[tuple[float, float], ...]


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
    assert module.routers is not None  # checked_module makes them
    own = module.settings
    routings = {
        "original": _settings(own, Method.SMOE),
        "ssmoe": _settings(own, Method.SSMOE, alpha=options.alpha),
        "ev": _settings(own, Method.SSMOE, alpha=1.0),
    } | {routing: _settings(own, Method.SMOE, routing=routing) for routing in options.routings}
    keywords: dict[str, Any] = {"batch_size": options.batch_size, "progress": options.progress}
    read = {routing: collect(module, sample.texts, chosen, **keywords) for routing, chosen in routings.items()}
    answers = expert_similarities(module, sample.texts, options.batch_size)
    vectors = {}
    for method in Method:
        view = model.using(_settings(own, method, alpha=options.alpha), routers=module.routers)
        vectors[str(method)] = view.encode(
            list(sample.texts), batch_size=options.batch_size, convert_to_tensor=True, show_progress_bar=False
        )
    return inspection_of(
        name,
        module.model,
        family_of(module.model),
        module.routers,
        read=read,
        vectors=vectors,
        options=options,
        told=partial(_decoded, module),
        matrices=("gate", "up", "down"),
        origin=sample.origin,
        labels=sample.labels,
        gradients=gradients,
        answers=answers,
    )


def _settings(own: EmbeddingSettings, method: Method, **changes: Any) -> EmbeddingSettings:
    """The model's settings with another method, uncalibrated."""
    plain = {"routing_signal": None, "routing": None, "calibration": Calibration.NONE}
    return own.changed(method=method, **(plain | changes))


def inspection_of(
    name: str,
    model: Any,
    family: MoEFamily,
    routers: SpectralRouters,
    *,
    read: Mapping[str, Activations],
    vectors: Mapping[str, torch.Tensor],
    options: InspectionOptions,
    told: Callable[[Sequence[int]], list[str]],
    matrices: Sequence[str],
    origin: str,
    labels: tuple[str, ...] | None,
    gradients: Mapping[int, Sequence[GradientAlignment]] | None = None,
    answers: Mapping[int, ExpertSimilarity] | None = None,
) -> Inspection:
    """Measure a model, or a tower of one, of which everything has been read.

    `read` is what the routers said, by routing; `vectors` are those of the `B` texts `[B,D]`, by method; `told` names
    tokens; `matrices` are what an expert's matrices are called, and other ones are numbered. For the rest see
    `Inspection` and, for `gradients` and `answers` by layer index, `LayerInspection`.
    """
    layers = []
    for place, layer in enumerate(family.layers(model)):
        E, seen = family.expert_count(layer), read["original"].layers[place]
        read_expert = partial(family.expert_matrices, layer.block)
        bases = dominant_bases(read_expert, range(E), options.directions)
        router = family.router_weight(layer.router)
        names = matrices if len(bases) == len(matrices) else tuple(f"matrix {i}" for i in range(len(bases)))
        layers.append(
            LayerInspection(
                layer=layer.index,
                experts=E,
                learned=collapse(router, seen.learned),
                spectral=collapse(routers.weights[layer.index], seen.spectral),
                covariance=covariance_bound(seen.learned, seen.spectral, options.alpha),
                loads={routing: load(one.layers[place].chosen, E) for routing, one in read.items()},
                tokens=[told(ids) for ids in top_tokens(read["original"].tokens, seen.chosen, E, options.tokens)],
                overlaps=dict(zip(names, map(subspace_overlap, bases), strict=True)),
                gates=dict(zip(names, (gate_alignment(router, one) for one in bases), strict=True)),
                gradients=dict(zip(names, (gradients or {}).get(layer.index, ()), strict=False)),
                answers=(answers or {}).get(layer.index),
            )
        )
    return Inspection(
        model=name,
        texts=len(read["original"].last),
        tokens=len(read["original"].tokens),
        origin=origin,
        hidden_size=int(model.config.get_text_config().hidden_size),
        alpha=options.alpha,
        spectral=routers.settings.as_dict(),
        labels=labels,
        layers=tuple(layers),
        clusters={
            method: clusters(found, options.clusters, known=labels, projection=options.projection)
            for method, found in vectors.items()
        },
    )


def _decoded(module: SSMoE, ids: Sequence[int]) -> list[str]:
    """Tokens as text; those that are part of a character by their name in the vocabulary."""
    texts = [str(module.tokenizer.decode([token])) for token in ids]
    names = module.tokenizer.convert_ids_to_tokens(list(ids))
    return [name if "\N{REPLACEMENT CHARACTER}" in text else text for text, name in zip(texts, names, strict=True)]


def clusters(
    vectors: torch.Tensor,
    count: int = 8,
    *,
    known: Sequence[str] | None = None,
    projection: Projection = Projection.TSNE,
    seed: int = 0,
) -> Clusters:
    """Cluster and map the vectors of texts, each feature standardised first.

    Args:
        vectors: `[B,D]`.
        count: Number of k-means clusters.
        known: Label of each text.
        projection: How the map is made.
        seed: Of k-means and the map.

    Raises:
        ValueError: There are too few texts.
        ImportError: The map's library is not installed.
    """
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    check_count(count, len(vectors))
    x = standardised(vectors)
    if projection is Projection.UMAP:
        require_package("umap", "umap-learn")
        from umap import UMAP

        layout: Any = UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed)
    else:
        layout = TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="pca", random_state=seed)
    labels = KMeans(count, n_init=4, random_state=seed).fit_predict(x)
    two_labels = known is not None and 2 <= len(set(known)) < len(x)
    return Clusters(
        silhouette=float(silhouette_score(x, labels)),
        davies_bouldin=float(davies_bouldin_score(x, labels)),
        by_label=float(silhouette_score(x, list(known or ()))) if two_labels else None,
        labels=tuple(int(label) for label in labels),
        places=tuple((float(a), float(b)) for a, b in layout.fit_transform(x)),
    )


def check_count(count: int, texts: int) -> None:
    """Refuse a number of clusters that so many texts cannot fall into.

    Raises:
        ValueError: There are too few texts, or less than two clusters.
    """
    if not 2 <= count < texts:
        raise ValueError(f"{texts} texts do not fall into {count} clusters; pass more texts, or fewer clusters.")


def standardised(vectors: torch.Tensor) -> NDArray[np.float64]:
    """Every feature with mean 0 and variance 1 over the texts, or 0 where it never changes: `[B,D]`."""
    x: NDArray[np.float64] = vectors.double().cpu().numpy()
    x = x - x.mean(axis=0)
    scale = x.std(axis=0)
    return x / np.where(scale > 1e-12 * max(1.0, float(scale.max(initial=0.0))), scale, np.inf)
