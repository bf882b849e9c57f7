"""Searching documents by meaning and by words: an index on disk, and what is read into it."""

from typing import TYPE_CHECKING

from ssmoe_embed.common.lazy import lazy_names

if TYPE_CHECKING:
    from ssmoe_embed.data import Document
    from ssmoe_embed.search.hits import Contribution, Explanation, Hit, Snippet
    from ssmoe_embed.search.hybrid import SearchMode
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.kinds import IndexKind
    from ssmoe_embed.search.manifest import BusyIndexError, DamagedIndexError, WrongModelError
    from ssmoe_embed.search.reading.corpus import read_documents
    from ssmoe_embed.search.store import Criterion, parse_filters
    from ssmoe_embed.search.writing import AddCounts
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ssmoe_embed.data": ("Document",),
            "ssmoe_embed.search.manifest": ("BusyIndexError", "DamagedIndexError", "WrongModelError"),
            "ssmoe_embed.search.store": ("Criterion", "parse_filters"),
            "ssmoe_embed.search.hits": ("Contribution", "Explanation", "Hit", "Snippet"),
            "ssmoe_embed.search.hybrid": ("SearchMode",),
            "ssmoe_embed.search.index": ("SemanticIndex",),
            "ssmoe_embed.search.kinds": ("IndexKind",),
            "ssmoe_embed.search.reading.corpus": ("read_documents",),
            "ssmoe_embed.search.writing": ("AddCounts",),
        },
    )

__all__ = [
    "AddCounts",
    "BusyIndexError",
    "Contribution",
    "Criterion",
    "DamagedIndexError",
    "Document",
    "Explanation",
    "Hit",
    "IndexKind",
    "SearchMode",
    "SemanticIndex",
    "Snippet",
    "WrongModelError",
    "parse_filters",
    "read_documents",
]
