"""Scores of tasks on pairs of texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssmoe_embed.evaluation.significance.rescoring.common import Array, Rescore, Scorer, unknown_metric

_DISTANCES = {
    "": "similarity_scores",
    "similarity": "similarity_scores",
    "cosine": "cosine_scores",
    "manhattan": "manhattan_distances",
    "euclidean": "euclidean_distances",
    "dot": "dot_scores",
}
"""How mteb calls the similarities behind a metric of that prefix."""


def sts(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Correlation of the similarities with the gold scores; 0 where one side is constant."""
    prefix, _, kind = metric.rpartition("_")
    if prefix not in _DISTANCES or prefix in {"similarity", "dot"} or kind not in {"spearman", "pearson"}:
        raise unknown_metric(task, metric, "spearman, pearson, and both with cosine_, manhattan_, euclidean_ before")
    found = predictions[_DISTANCES[prefix]] or predictions["cosine_scores"]
    gold, values = np.asarray(data["score"], dtype=float), np.asarray(found, dtype=float)
    if kind == "pearson":
        return len(gold), lambda weights: _pearson(gold, values, weights)
    ranks = _ranker(gold), _ranker(values)
    return len(gold), lambda weights: _pearson(ranks[0](weights), ranks[1](weights), weights)


def _ranker(values: Array) -> Rescore:
    """The rank of each value among the drawn ones, tied values sharing their mean rank, shape [B, n]."""
    order = np.argsort(values, kind="stable")
    last = np.searchsorted(values[order], values[order], side="right") - 1  # [n], in sorted order
    first = np.searchsorted(values[order], values[order], side="left")

    def ranks(weights: Array) -> Array:
        done = np.cumsum(weights[..., order], axis=-1)  # [B, n]
        before = done[..., first] - weights[..., order][..., first]
        result = np.empty_like(done)
        result[..., order] = (before + 1 + done[..., last]) / 2
        return result

    return ranks


def _pearson(first: Array, second: Array, weights: Array) -> Array:
    total = weights.sum(axis=-1, keepdims=True)
    a = first - (first * weights).sum(axis=-1, keepdims=True) / total
    b = second - (second * weights).sum(axis=-1, keepdims=True) / total
    spread = np.sqrt((weights * a * a).sum(axis=-1) * (weights * b * b).sum(axis=-1))
    return np.divide((weights * a * b).sum(axis=-1), spread, out=np.zeros_like(spread), where=spread > 1e-12)


def pair_classification(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Average precision of the similarities, or the best one of all kinds."""
    prefix, _, kind = metric.rpartition("_")
    prefixes = list(_DISTANCES)[1:] if prefix == "max" else [prefix]
    if kind != "ap" or prefix == "" or not set(prefixes) <= set(_DISTANCES):
        raise unknown_metric(task, metric, "ap with similarity_, cosine_, manhattan_, euclidean_, dot_ or max_ before")
    labels = data[task.label_column_name]
    labels = np.asarray(labels[0] if len(data) == 1 else labels, dtype=float)  # old data sets are one row of lists
    parts = []
    for name in prefixes:
        sign = -1 if _DISTANCES[name].endswith("distances") else 1
        parts.append(_average_precision(labels, sign * np.asarray(predictions[_DISTANCES[name]], dtype=float)))
    return len(labels), lambda weights: np.max([part(weights) for part in parts], axis=0)


def _average_precision(labels: Array, scores: Array) -> Rescore:
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # a threshold cannot part equal scores

    def score(weights: Array) -> Array:
        drawn = weights[..., order]
        right = np.cumsum(drawn * labels[order], axis=-1)[..., ends]
        above = np.cumsum(drawn, axis=-1)[..., ends]
        precision = np.divide(right, above, out=np.zeros_like(right), where=above > 0)
        steps = np.diff(right, axis=-1, prepend=0)
        total = right[..., -1]
        return np.divide((steps * precision).sum(axis=-1), total, out=np.zeros_like(total), where=total > 0)

    return score
