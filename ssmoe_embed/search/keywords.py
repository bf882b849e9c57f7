"""Search by words: BM25 over the texts, and its fusion with the search by meaning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ssmoe_embed.common.folders import atomic_folder
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.vectors import Array

_SEQS = "documents.npy"
_RANK_SHIFT = 60


class Keywords:
    """A BM25 index of one generation's documents, kept beside the index and memory-mapped."""

    def __init__(self, index: Any, seqs: Array) -> None:
        """`index` is of bm25s, whose document `i` has the sequence number `seqs[i]`."""
        self._index = index
        self._seqs = seqs

    @classmethod
    def of(cls, folder: Path, store: Store, generation: int) -> Keywords:
        """The index from disk, or else made: that takes memory for the words of all documents.

        Raises:
            ValueError: bm25s is not installed.
        """
        bm25s = _library()
        place = folder / f"keywords-{generation}"
        if (place / _SEQS).is_file():
            index = bm25s.BM25.load(str(place), mmap=True, allow_pickle=False)
            return cls(index, np.load(place / _SEQS, mmap_mode="r", allow_pickle=False))
        index, seqs = _made(bm25s, store, generation)
        if os.access(folder, os.W_OK):
            with suppress(FileExistsError, OSError), atomic_folder(place) as new:  # it only saves time
                index.save(str(new), allow_pickle=False)
                np.save(new / _SEQS, seqs, allow_pickle=False)
        return cls(index, seqs)

    def search(self, text: str, top: int, allowed: Array | None = None) -> list[int]:
        """Sequence numbers of the documents that have words of the text, best first.

        Args:
            text: The query.
            top: How many at most.
            allowed: Sequence numbers of the documents that may be found; None for all.
        """
        words = _words(_library(), [text], progress=False)
        words = [[word for word in words[0] if word in self._index.vocab_dict]]
        if not words[0]:
            return []
        weights = None if allowed is None else np.isin(self._seqs, allowed).astype(np.float32)
        found, scores = self._index.retrieve(
            words, k=min(top, len(self._seqs)), show_progress=False, weight_mask=weights, n_threads=0
        )
        return [int(self._seqs[place]) for place, score in zip(found[0], scores[0], strict=True) if score > 0]


def fuse(*rankings: Sequence[int]) -> list[tuple[int, float]]:
    """Reciprocal-rank fusion (Cormack et al. 2009): `(item, Σ 1/(60+rank))`, best first; of equal ones the smaller item."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (_RANK_SHIFT + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _made(bm25s: Any, store: Store, generation: int) -> tuple[Any, Array]:
    """A new index of all documents."""
    seqs: list[int] = []
    words: list[list[str]] = []
    for part in store.stream(generation):
        seqs += [seq for seq, _, _ in part]
        words += _words(bm25s, [document.full_text for _, _, document in part], progress=False)
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return index, np.array(seqs, dtype=np.int64)


def _words(bm25s: Any, texts: list[str], *, progress: bool) -> list[list[str]]:
    """The lower-cased words of texts."""
    return bm25s.tokenize(texts, stopwords=None, return_ids=False, show_progress=progress)


def _library() -> Any:
    """bm25s, imported when it is first needed."""
    try:
        import bm25s
    except ModuleNotFoundError:
        raise ValueError("A hybrid search needs bm25s: pip install 'ssmoe-embed[faiss]'.") from None
    return bm25s
