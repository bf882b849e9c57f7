"""Searching documents by meaning: a corpus held in memory, or an index on disk."""

from typing import TYPE_CHECKING

from ssmoe_embed.common.lazy import lazy_names

if TYPE_CHECKING:
    from ssmoe_embed.search.documents import AddCounts, Document, Hit, Snippet
    from ssmoe_embed.search.errors import BusyIndexError, DamagedIndexError, WrongModelError
    from ssmoe_embed.search.explanation import Contribution, Explanation
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.kinds import IndexKind
    from ssmoe_embed.search.reading import read_documents
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ssmoe_embed.search.documents": ("AddCounts", "Document", "Hit", "Snippet"),
            "ssmoe_embed.search.errors": ("BusyIndexError", "DamagedIndexError", "WrongModelError"),
            "ssmoe_embed.search.explanation": ("Contribution", "Explanation"),
            "ssmoe_embed.search.index": ("SemanticIndex",),
            "ssmoe_embed.search.kinds": ("IndexKind",),
            "ssmoe_embed.search.reading": ("read_documents",),
        },
    )

__all__ = [
    "AddCounts",
    "BusyIndexError",
    "Contribution",
    "DamagedIndexError",
    "Document",
    "Explanation",
    "Hit",
    "IndexKind",
    "SemanticIndex",
    "Snippet",
    "WrongModelError",
    "read_documents",
]
