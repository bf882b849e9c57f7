"""How much each block of a vector contributes to a score.

The vectors of this package's models are blocks side by side: the hidden state, then the routing signal of each layer. The
cosine of two of them is a sum over numbers, so it is also a sum over blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.families import family_of
from ssmoe_embed.search.vectors import Array


@dataclass(frozen=True)
class Contribution:
    """One block's part in a score.

    Attributes:
        block: `hidden`, or `routing of layer 3`.
        size: Numbers in the block.
        score: What it adds; all blocks' add up to the score of the document.
        cosine: The similarity within the block alone.
    """

    block: str
    size: int
    score: float
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """The score of one document, taken apart.

    Attributes:
        id: The document.
        score: Its cosine similarity to the query.
        contributions: What the score is the sum of.
    """

    id: str
    score: float
    contributions: tuple[Contribution, ...]


def vector_blocks(model: SentenceTransformer) -> list[tuple[str, int]]:
    """Names and sizes of the blocks that a model's vectors consist of, in their order.

    Raises:
        ValueError: It is not a model of this package, or changes its vectors after they were joined.
    """
    module = model[0]
    if not isinstance(module, SSMoE) or not all(isinstance(other, Normalize) for other in list(model)[1:]):
        raise ValueError(
            f"Only vectors of this package's models can be explained by block, and those of {type(module).__name__} have no "
            "blocks; search with a model made by `ssmoe build`."
        )
    chosen = module.settings.representation
    blocks = [("hidden", int(module.model.config.get_text_config().hidden_size))] if chosen.hidden else []
    if chosen.signal is not None:
        family = family_of(module.model)
        layers = family.layers(module.model)
        blocks += [(f"routing of layer {layer.index}", family.expert_count(layer)) for layer in layers]
    return _cut(blocks, model.get_embedding_dimension())


def explain(model: SentenceTransformer, query: Array, document: Array, id: str, score: float) -> Explanation:  # noqa: A002
    """Take a score apart.

    Args:
        model: What made both vectors.
        query: Unit vector `[D]`.
        document: The stored unit vector `[D]`.
        id: The document's.
        score: The score that a search gives it.

    Raises:
        ValueError: The model's vectors have no blocks.
    """
    query, document = query.astype(np.float64), document.astype(np.float64)
    contributions, start = [], 0
    for name, size in vector_blocks(model):
        mine, other = query[start : start + size], document[start : start + size]
        part = float(mine @ other)
        lengths = float(np.linalg.norm(mine) * np.linalg.norm(other))
        contributions.append(Contribution(name, size, part, part / lengths if lengths else 0.0))
        start += size
    return Explanation(id, score, tuple(contributions))


def _cut(blocks: list[tuple[str, int]], dimension: int | None) -> list[tuple[str, int]]:
    """The blocks within the first numbers of a vector, where a model keeps only those."""
    kept, left = [], sum(size for _, size in blocks) if dimension is None else dimension
    for name, size in blocks:
        if left > 0:
            kept.append((name, min(size, left)))
        left -= size
    return kept
