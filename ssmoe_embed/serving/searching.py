"""One search as the page and programs ask for it, by words or by an image, and the thumbnails of an index of images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from ssmoe_embed.data import Document
from ssmoe_embed.search.hits import Hit
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.store import parse_filters
from ssmoe_embed.serving.maps import CorpusMap
from ssmoe_embed.serving.refusals import RequestError, ServerLimits, bad_value


def check_query(query: str, limits: ServerLimits) -> None:
    """Refuse a query that is blank or too long."""
    if not query.strip():
        raise bad_value("q is empty; say in words what you are looking for.", "q", "empty_query")
    if len(query) > limits.max_query:
        raise bad_value(
            f"q has {len(query)} characters and at most {limits.max_query} are read.", "q", "query_too_long"
        )


def document_json(document: Document) -> dict[str, Any]:
    """A document as JSON."""
    return {
        "id": document.id,
        "title": document.title or "",
        "text": document.text,
        "source": document.source or "",
        "metadata": {name: value for name, value in document.metadata.items() if name != "image"},
        "image": document.image is not None,
    }


def one_document(index: SemanticIndex, name: str) -> Document:
    """The document of an id; a `RequestError` where there is none."""
    try:
        return index[name]
    except KeyError:
        raise RequestError(404, f"There is no document {name!r}.", param="id", code="document_not_found") from None


def explanation(index: SemanticIndex, query: str, name: str) -> dict[str, Any]:
    """The JSON of what a document's score is made of; runs in the model's thread.

    Raises:
        RequestError: There is no such document, or its score cannot be explained.
    """
    one_document(index, name)
    try:
        made = index.explain(query, name)
    except ValueError as error:
        raise RequestError(400, str(error), code="no_explanation") from error
    blocks = [{"name": part.block, "score": part.score} for part in made.contributions]
    return {"score": made.score, "blocks": blocks}


def search_answer(
    index: SemanticIndex,
    made: CorpusMap | None,
    query: str,
    top: int,
    conditions: Sequence[str],
    *,
    mode: str,
    snippets: bool,
) -> dict[str, Any]:
    """The JSON of one search; runs in the model's thread. What another process added to the index is found.

    Args:
        index: What to search.
        made: Its map, if it is made, to say where the hits are.
        query: What to look for.
        top: How many documents.
        conditions: See `parse_filters`.
        mode: A `SearchMode`.
        snippets: Look for the best sentence of each hit, which takes longer than finding the hits.

    Raises:
        RequestError: The index refuses the query, the mode or a filter.
    """
    try:
        filters = parse_filters(conditions)
    except ValueError as error:
        raise bad_value(str(error), "filter") from None
    begin = perf_counter()
    with suppress(OSError, ValueError):  # a newer generation that cannot be opened: go on with this one
        index.refresh()
    try:
        found = index.search(query, top, filters=filters or None, mode=mode, snippets=snippets)
    except ValueError as error:
        raise RequestError(400, str(error), code="search_refused") from error
    milliseconds = round((perf_counter() - begin) * 1000, 1)
    points = _points(index, made, found) if made is not None else [None] * len(found)
    hits = [hit_json(hit) | {"point": point} for hit, point in zip(found, points, strict=True)]
    return {"query": query, "documents": len(index), "milliseconds": milliseconds, "hits": hits}


def hit_json(hit: Hit) -> dict[str, Any]:
    """A hit as JSON, the snippet in parts before, in and after the best sentence, without Markdown's marks."""
    known = {name: value for name, value in document_json(hit.document).items() if name != "text"}
    scores = {"score": hit.score, "similarity": hit.similarity, "words": hit.words, "weak": hit.weak}
    return known | scores | {"snippet": [{"text": text, "best": best} for text, best in hit.shown()]}


def _points(index: SemanticIndex, made: CorpusMap, found: Sequence[Hit]) -> list[list[float] | None]:
    """Where hits are on the map; those that are not on it are placed among their neighbours."""
    points: list[list[float] | None] = [made.point(hit.document.id) for hit in found]
    absent = [number for number, point in enumerate(points) if point is None]
    if absent:
        placed = made.place(index.vectors([found[number].document.id for number in absent]))
        for number, point in zip(absent, placed.tolist(), strict=True):
            points[number] = point
    return points


_SIDE = 160
"""Pixels of a thumbnail's longer side."""


def thumbnail(index: SemanticIndex, name: str) -> bytes:
    """The image of a document, made small, as PNG; only files that were indexed are read.

    Raises:
        RequestError: There is no such document, it is a text, or its file is gone or broken.
    """
    from ssmoe_embed.vision.inputs import ImageError, read_image

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
        found = index.search_like(image, top, filters=filters or None)
    except ValueError as error:
        raise bad_value(str(error), "body", "search_refused") from error
    milliseconds = round((perf_counter() - begin) * 1000, 1)
    return {
        "documents": len(index),
        "milliseconds": milliseconds,
        "hits": [hit_json(hit) | {"point": None} for hit in found],
    }
