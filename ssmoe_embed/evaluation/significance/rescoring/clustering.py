"""Scores of clustering."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np

from ssmoe_embed.evaluation.significance.rescoring.common import Array, Rescore, Scorer, unknown_metric


def clustering(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean V-measure over levels and experiments of the assignments as they are.

    mteb draws the texts of each experiment at random and does not write which; they are drawn again here in the same way.
    """
    if metric != "v_measure":
        raise unknown_metric(task, metric, "v_measure")
    rng, labels, rows = random.Random(task.seed), list(data[task.label_column_name]), np.arange(len(data))
    most = task.max_document_to_embed
    if task.max_fraction_of_documents_to_embed is not None:
        most = int(task.max_fraction_of_documents_to_embed * len(rows))
    if most is not None:
        rows = np.asarray(rng.sample(range(len(rows)), k=min(len(rows), most)))
    parts = []
    for level, (_, experiments) in enumerate(sorted(predictions.items(), key=lambda item: int(item[0].split()[-1]))):
        names = [(labels[row] if isinstance(labels[row], list) else [labels[row]]) for row in rows]
        there = [(row, name[level]) for row, name in zip(rows, names, strict=True) if len(name) > level]
        for clusters in experiments:
            drawn = [there[i] for i in rng.choices(range(len(there)), k=task.max_documents_per_cluster)]
            parts.append(_v_part(len(data), [d[0] for d in drawn], [d[1] for d in drawn], clusters))
    return len(data), lambda weights: np.mean([part(weights) for part in parts], axis=0)


def clustering_legacy(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean V-measure over the task's sets of texts, whose texts are resampled together; a set of one label counts as 1."""
    if metric != "v_measure":
        raise unknown_metric(task, metric, "v_measure")
    sets = [list(labels) for labels in data[task.label_column_name]]
    starts = [0, *itertools.accumulate(map(len, sets))]
    assignments, parts, trivial = iter(predictions), [], 0
    for start, labels in zip(starts, sets, strict=False):
        if len(set(labels)) > 1:
            parts.append(_v_part(starts[-1], range(start, start + len(labels)), labels, next(assignments)))
        else:
            trivial += 1

    def score(weights: Array) -> Array:
        return (np.sum([part(weights) for part in parts], axis=0) + trivial) / len(sets)

    return starts[-1], score


def _v_part(count: int, rows: Any, labels: list[Any], clusters: list[int]) -> Rescore:
    """V-measure of one clustering of some of the examples (https://aclanthology.org/D07-1043)."""
    from scipy import sparse

    names, gold = np.unique(np.asarray(labels), return_inverse=True)
    found, chosen = np.unique(np.asarray(clusters), return_inverse=True)
    shape = (len(names), len(found))
    cells = gold * shape[1] + chosen
    table = sparse.csr_matrix((np.ones(len(cells)), (np.asarray(rows), cells)), shape=(count, shape[0] * shape[1]))

    def score(weights: Array) -> Array:
        joint = np.asarray((table.T @ np.atleast_2d(weights).T).T).reshape(-1, *shape)  # [B, labels, clusters]
        joint = joint / joint.sum(axis=(1, 2), keepdims=True)
        of_labels, of_clusters = _entropy(joint.sum(axis=2)), _entropy(joint.sum(axis=1))
        shared = of_labels + of_clusters - _entropy(joint.reshape(len(joint), -1))
        total = of_labels + of_clusters
        value = np.divide(2 * shared, total, out=np.ones_like(total), where=total > 0)
        return value if np.ndim(weights) > 1 else value[0]

    return score


def _entropy(shares: Array) -> Array:
    return -(shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0)).sum(axis=-1)
