"""One search as the page and programs ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from ssmoe_embed.serving.corpora import Corpus, Found
from ssmoe_embed.serving.errors import RequestError, bad_value
from ssmoe_embed.serving.maps import CorpusMap


def filters_of(given: Sequence[str]) -> dict[str, str]:
    """Filters written as `key=value`.

    Raises:
        RequestError: One is written otherwise.
    """
    filters = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise bad_value(f"filter={one!r} is not of the form key=value.", "filter")
        filters[name.strip()] = value.strip()
    return filters


def search_answer(
    corpus: Corpus, made: CorpusMap | None, query: str, top: int, filters: Mapping[str, str], *, hybrid: bool
) -> dict[str, Any]:
    """The JSON of one search; runs in the model's thread.

    Args:
        corpus: What to search.
        made: Its map, if it is made, to say where the hits are.
        query: What to look for.
        top: How many documents.
        filters: What their metadata must be.
        hybrid: Join with BM25.

    Raises:
        RequestError: The corpus refuses the query or a filter.
    """
    begin = perf_counter()
    try:
        found = corpus.search(query, top, filters, hybrid=hybrid)
    except ValueError as error:
        raise RequestError(400, str(error), code="search_refused") from error
    milliseconds = round((perf_counter() - begin) * 1000, 1)
    points = _points(corpus, made, found) if made is not None else [None] * len(found)
    hits = [hit.as_dict() | {"point": point} for hit, point in zip(found, points, strict=True)]
    return {"query": query, "documents": len(corpus), "milliseconds": milliseconds, "hits": hits}


def _points(corpus: Corpus, made: CorpusMap, found: Sequence[Found]) -> list[list[float] | None]:
    """Where hits are on the map; those that are not on it are placed among their neighbours."""
    points: list[list[float] | None] = [made.point(hit.entry.id) for hit in found]
    absent = [number for number, point in enumerate(points) if point is None]
    if absent:
        placed = made.place(corpus.vectors([found[number].entry.id for number in absent]))
        for number, point in zip(absent, placed.tolist(), strict=True):
            points[number] = point
    return points
