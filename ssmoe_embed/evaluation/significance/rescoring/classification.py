"""Scores of classification."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssmoe_embed.evaluation.significance.rescoring.common import Array, Scorer, mean, unknown_metric


def classification(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean over experiments; the classifiers stay as they were fitted."""
    gold, chosen = np.asarray(data[task.label_column_name]), np.asarray(predictions)  # [n], [experiments, n]
    if metric == "accuracy":
        return mean((chosen == gold).mean(axis=0))
    if metric not in {"f1", "f1_weighted"}:
        raise unknown_metric(task, metric, "accuracy, f1, f1_weighted")
    classes = np.unique(np.concatenate([gold, chosen.ravel()]))
    is_gold = (gold[:, None] == classes).astype(float)  # [n, C]
    are_chosen = [(one[:, None] == classes).astype(float) for one in chosen]

    def score(weights: Array) -> Array:
        actual = weights @ is_gold  # [B, C]
        scores = [_f1(actual, weights @ one, weights @ (one * is_gold), metric) for one in are_chosen]
        return np.mean(scores, axis=0)

    return len(gold), score


def _f1(actual: Array, chosen: Array, right: Array, average: str) -> Array:
    """F1 averaged over the classes that occur; counts of shape [B, C]."""
    total = actual + chosen
    f1 = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
    if average == "f1":
        return f1.sum(axis=-1) / (total > 0).sum(axis=-1)
    return (f1 * actual).sum(axis=-1) / actual.sum(axis=-1)
