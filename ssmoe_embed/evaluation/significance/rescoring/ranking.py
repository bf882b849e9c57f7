"""Scores of retrieval, reranking and summarization: means of one value a query or text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ssmoe_embed.evaluation.significance.rescoring.common import Scorer, mean, unknown_metric

_MEASURES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
"""mteb's name of a measure → that of trec_eval."""


def retrieval(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean of the queries' values."""
    import pytrec_eval
    from mteb._evaluators.retrieval_metrics import mrr

    match = re.fullmatch(r"(ndcg|map|recall|precision|hit_rate|mrr)_at_(\d+)", metric)
    if match is None:
        raise unknown_metric(task, metric, "ndcg, map, mrr, recall, precision and hit_rate, each with _at_K")
    measure, cut = match.group(1), int(match.group(2))
    relevant = {query: documents for query, documents in data["relevant_docs"].items() if documents}
    found = {query: _kept(task, query, predictions[query]) for query in relevant if query in predictions}
    if measure == "mrr":
        return mean(mrr(relevant, found, [cut])[f"MRR@{cut}"])
    name = _MEASURES[measure]
    values = pytrec_eval.RelevanceEvaluator(relevant, {f"{name}.{cut}"}).evaluate(found)
    return mean([values[query][f"{name}_{cut}"] for query in found])


def _kept(task: Any, query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The documents that count: not the query itself, nor the first one, where the task says so."""
    kept = {document: s for document, s in scores.items() if not (task.ignore_identical_ids and document == query)}
    if task.skip_first_result:
        kept = dict(sorted(kept.items(), key=lambda item: item[1], reverse=True)[1:])
    return kept


def summarization(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean of the texts' correlations, each as the task's own evaluator computes it."""
    del data
    names = list(predictions)
    texts = [
        dict(zip(names, ([part] for part in parts), strict=True)) for parts in zip(*predictions.values(), strict=True)
    ]
    values = [task.evaluator._calculate_metrics(None, text) for text in texts]
    if values and metric not in values[0]:
        raise unknown_metric(task, metric, ", ".join(values[0]))
    return mean([value[metric] for value in values])
