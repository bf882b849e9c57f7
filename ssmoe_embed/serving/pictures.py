"""Images of an index: thumbnails for the page, and searching by an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from ssmoe_embed.search.filters import parse_filters
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.likeness import search_like
from ssmoe_embed.serving.refusals import RequestError, bad_value
from ssmoe_embed.serving.searching import hit_json, one_document

_SIDE = 160
"""Pixels of a thumbnail's longer side."""


def thumbnail(index: SemanticIndex, name: str) -> bytes:
    """The image of a document, made small, as PNG; only files that were indexed are read.

    Raises:
        RequestError: There is no such document, it is a text, or its file is gone or broken.
    """
    from ssmoe_embed.vision.reading import ImageError, read_image

    path = one_document(index, name).image
    if path is None:
        raise RequestError(404, f"The document {name!r} is no image.", param="id", code="no_image")
    try:
        image = read_image(path)
    except ImageError as error:
        raise RequestError(404, str(error), param="id", code="no_image") from error
    image.thumbnail((_SIDE, _SIDE))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def like_answer(index: SemanticIndex, image: bytes, top: int, conditions: Sequence[str]) -> dict[str, Any]:
    """The JSON of a search by an image's file; runs in the model's thread.

    Raises:
        RequestError: The image cannot be read, a filter is not known, or the index's model reads no images.
    """
    try:
        filters = parse_filters(conditions)
        begin = perf_counter()
        found = search_like(index, image, top, filters=filters or None)
    except ValueError as error:
        raise bad_value(str(error), "body", "search_refused") from error
    milliseconds = round((perf_counter() - begin) * 1000, 1)
    return {
        "documents": len(index),
        "milliseconds": milliseconds,
        "hits": [hit_json(hit) | {"point": None} for hit in found],
    }
