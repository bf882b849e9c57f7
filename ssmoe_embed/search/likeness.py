"""Searching by a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssmoe_embed.search.hits import Hit
from ssmoe_embed.search.index import SemanticIndex


def search_like(
    index: SemanticIndex, image: Any, top: int = 10, *, filters: Mapping[str, Any] | None = None
) -> list[Hit]:
    """The documents of an index that are most like a picture, best first.

    Args:
        index: An index whose model reads pictures; its documents may be pictures or texts.
        image: What the model reads as one: a path, a PIL image, an array.
        top: How many documents.
        filters: See `SemanticIndex.search`.

    Raises:
        ImageError: The picture cannot be read.
        ValueError: The model reads texts only, or the index was opened without one.
    """
    model = index.model
    if model is None or "image" not in getattr(model, "modalities", ()):
        raise ValueError(
            f"The index in {index.folder} cannot be searched by an image: its model reads texts only. Make it with one that "
            "reads images, such as ssmoe/tiny-clip."
        )
    vectors = model.encode_query([{"image": image}], show_progress_bar=False, convert_to_numpy=True)
    return index.search_vectors(vectors, top, filters=filters)[0]
