"""Searching documents by meaning: a corpus held in memory, or an index on disk."""

from ssmoe_embed.search.documents import AddCounts, Document, Hit, Snippet
from ssmoe_embed.search.errors import BusyIndexError, DamagedIndexError, WrongModelError
from ssmoe_embed.search.explanation import Contribution, Explanation
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.kinds import IndexKind
from ssmoe_embed.search.reading import read_documents

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
