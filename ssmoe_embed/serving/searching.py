"""One search as the page and programs ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from ssmoe_embed.search.filters import parse_filters
from ssmoe_embed.serving.corpora import Corpus, Found
from ssmoe_embed.serving.maps import CorpusMap
from ssmoe_embed.serving.refusals import RequestError, ServerLimits, bad_value


def check_query(query: str, limits: ServerLimits) -> None:
    """Make sure that there is something to look for.

    Raises:
        RequestError: The query is blank or too long.
    """
    if not query.strip():
        raise bad_value("q is empty; say in words what you are looking for.", "q", "empty_query")
    if len(query) > limits.max_query:
        raise bad_value(
            f"q has {len(query)} characters and at most {limits.max_query} are read.", "q", "query_too_long"
        )


def explanation(corpus: Corpus, query: str, name: str) -> dict[str, Any]:
    """The JSON of what a document's score is made of; runs in the model's thread.

    Raises:
        RequestError: There is no such document, or its score cannot be explained.
    """
    if corpus.get(name) is None:
        raise RequestError(404, f"There is no document {name!r}.", param="id", code="document_not_found")
    try:
        parts = corpus.explain(query, name)
    except ValueError as error:
        raise RequestError(400, str(error), code="no_explanation") from error
    return {
        "score": sum(score for _, score in parts),
        "blocks": [{"name": block, "score": score} for block, score in parts],
    }


def search_answer(
    corpus: Corpus,
    made: CorpusMap | None,
    query: str,
    top: int,
    conditions: Sequence[str],
    *,
    hybrid: bool,
    snippets: bool,
) -> dict[str, Any]:
    """The JSON of one search; runs in the model's thread.

    Args:
        corpus: What to search.
        made: Its map, if it is made, to say where the hits are.
        query: What to look for.
        top: How many documents.
        conditions: What their metadata must be, as `key=value`.
        hybrid: Join with BM25.
        snippets: Look for the best sentence of each hit, which takes longer than finding the hits.

    Raises:
        RequestError: The corpus refuses the query or a filter.
    """
    try:
        filters = parse_filters(conditions)
    except ValueError as error:
        raise bad_value(str(error), "filter") from None
    begin = perf_counter()
    try:
        found = corpus.search(query, top, filters, hybrid=hybrid, snippets=snippets)
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
