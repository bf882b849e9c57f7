"""Retrieval: which document answers a query."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity

from ssmoe_embed.evaluation.offline.bootstrap import with_interval
from ssmoe_embed.evaluation.offline.task import Encode, embed

CUTOFF = 10


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and which documents are relevant to each query.

    Attributes:
        name: Short name.
        queries: Q texts.
        documents: D texts.
        relevant: For each query the positions of its relevant documents.
    """

    name: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[frozenset[int], ...]
    main_metric: str = "mrr@10"

    @classmethod
    def from_records(cls, name: str, records: Iterable[dict[str, Any]]) -> "RetrievalTask":
        """Read records of the two kinds ``{id, document}`` and ``{query, relevant: [ids]}``.

        Raises:
            ValueError: If a query names a document that is not among the records.
        """
        records = list(records)
        positions = {r["id"]: i for i, r in enumerate(r for r in records if "document" in r)}
        queries = [r for r in records if "query" in r]
        for query in queries:
            missing = [identifier for identifier in query["relevant"] if identifier not in positions]
            if missing:
                msg = f"The query {query['query']!r} of task {name!r} names the unknown documents {missing}."
                raise ValueError(msg)
        return cls(
            name,
            queries=tuple(r["query"] for r in queries),
            documents=tuple(r["document"] for r in records if "document" in r),
            relevant=tuple(frozenset(positions[i] for i in r["relevant"]) for r in queries),
        )

    def texts(self) -> list[str]:
        """Documents, then queries."""
        return [*self.documents, *self.queries]

    def evaluate(self, encode: Encode) -> dict[str, float]:
        """Rank the documents by cosine; see `evaluate_scores`."""
        queries, documents = embed(encode, list(self.queries)), embed(encode, list(self.documents))
        return self.evaluate_scores(cosine_similarity(queries, documents))

    def evaluate_scores(self, scores: np.ndarray) -> dict[str, float]:
        """Measure any scoring of the documents, shape [Q, D], higher is better.

        Documents with equal scores count as if their order were drawn, so ties earn what guessing would.

        Returns:
            ``mrr@10`` with its interval, ``recall@1``, ``recall@10`` (is a relevant document among the first?) and
            ``ndcg@10``.
        """
        relevance = np.zeros((len(self.queries), len(self.documents)), dtype=bool)  # [Q, D]
        for row, positions in zip(relevance, self.relevant, strict=True):
            row[list(positions)] = True
        scores = np.round(scores, 6)  # rounding noise would break ties by chance
        ranks = best_ranks(relevance, scores)
        reciprocal = np.where(ranks <= CUTOFF, 1 / ranks, 0.0)
        return with_interval("mrr@10", np.mean, reciprocal) | {
            "recall@1": float(np.mean(ranks <= 1)),
            "recall@10": float(np.mean(ranks <= CUTOFF)),
            "ndcg@10": float(ndcg_score(relevance, scores, k=CUTOFF)),
        }


def best_ranks(relevance: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Rank of each query's best relevant document, from 1; its expected value where scores are tied, shape [Q]."""
    best = np.where(relevance, scores, -np.inf).max(axis=1, keepdims=True)  # [Q, 1]
    tied = scores == best
    above = (scores > best).sum(axis=1)
    return above + (tied.sum(axis=1) + 1) / ((tied & relevance).sum(axis=1) + 1)
