"""A task's score, computed again from mteb's prediction files, on any resample of the task's examples.

A resample is a weight for each example: how often it was drawn. A `Rescore` maps weights of shape [B, n] to B scores.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rescore = Callable[[Array], Array]
Scorer = tuple[int, Rescore]
"""Number of examples, and their score under weights."""

_DISTANCES = {
    "": "similarity_scores",
    "similarity": "similarity_scores",
    "cosine": "cosine_scores",
    "manhattan": "manhattan_distances",
    "euclidean": "euclidean_distances",
    "dot": "dot_scores",
}
"""How mteb calls the similarities behind a metric of that prefix."""
_MEASURES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
"""mteb's name of a measure → that of trec_eval."""


def scorer(task: Any, predictions: Any, metric: str, split: str, subset: str) -> Scorer:
    """What computes a task's score from what mteb wrote for a split and subset; the task's data must be loaded.

    Raises:
        ValueError: The predictions do not suffice for tasks of this type, or for this metric.
    """
    data = task.dataset[split] if subset == "default" and subset not in task.dataset else task.dataset[subset][split]
    kind = next(base.__name__ for base in type(task).__mro__ if base.__name__.startswith("AbsTask"))
    if kind in _KINDS and not getattr(task, "is_cross_validation", False):
        return _KINDS[kind](task, predictions, metric, data)
    raise ValueError(
        f"The predictions that mteb writes for {task.metadata.name!r} ({task.metadata.type}) do not suffice to resample "
        "its examples; choose a task of classification (zero-shot too), clustering, pair classification, reranking, "
        "retrieval, STS or summarization."
    )


def _classification(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean over experiments; the classifiers stay as they were fitted."""
    return _chosen(task, np.asarray(data[task.label_column_name]), np.asarray(predictions), metric)


def _zero_shot(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Of the class that is nearest: predictions are a number per class of every example, or the nearest one itself."""
    found = np.asarray(predictions)  # [n,C] or [n]
    gold = np.asarray(task._normalize_labels(data[task.label_column_name], task.get_candidate_labels()))
    return _chosen(task, gold, (found.argmax(axis=1) if found.ndim == 2 else found)[None], metric)


def _chosen(task: Any, gold: Any, chosen: Any, metric: str) -> Scorer:
    """Scores of chosen classes `[experiments, n]`, of which `gold [n]` are right."""
    if metric == "accuracy":
        return _mean((chosen == gold).mean(axis=0))
    if metric not in {"f1", "f1_weighted"}:
        raise _unknown_metric(task, metric, "accuracy, f1, f1_weighted")
    classes = np.unique(np.concatenate([gold, chosen.ravel()]))
    is_gold = (gold[:, None] == classes).astype(float)  # [n, C]
    are_chosen = [(one[:, None] == classes).astype(float) for one in chosen]

    def score(weights: Array) -> Array:
        actual = weights @ is_gold  # [B, C]
        scores = []
        for one in are_chosen:
            right, total = weights @ (one * is_gold), actual + weights @ one  # [B, C]
            f1 = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
            share = total > 0 if metric == "f1" else actual  # the mean is over the classes that occur
            scores.append((f1 * share).sum(axis=-1) / share.sum(axis=-1))
        return np.mean(scores, axis=0)

    return len(gold), score


def _clustering(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean V-measure over levels and experiments of the assignments as they are.

    mteb draws the texts of each experiment at random and does not write which; they are drawn again here in the same way.
    """
    if metric != "v_measure":
        raise _unknown_metric(task, metric, "v_measure")
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


def _clustering_legacy(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean V-measure over the task's sets of texts, whose texts are resampled together; a set of one label counts as 1."""
    if metric != "v_measure":
        raise _unknown_metric(task, metric, "v_measure")
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


def _sts(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Correlation of the similarities with the gold scores; 0 where one side is constant."""
    prefix, _, kind = metric.rpartition("_")
    if prefix not in _DISTANCES or prefix in {"similarity", "dot"} or kind not in {"spearman", "pearson"}:
        raise _unknown_metric(task, metric, "spearman, pearson, and both with cosine_, manhattan_, euclidean_ before")
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


def _pair_classification(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Average precision of the similarities, or the best one of all kinds."""
    prefix, _, kind = metric.rpartition("_")
    prefixes = list(_DISTANCES)[1:] if prefix == "max" else [prefix]
    if kind != "ap" or prefix == "" or not set(prefixes) <= set(_DISTANCES):
        raise _unknown_metric(task, metric, "ap with similarity_, cosine_, manhattan_, euclidean_, dot_ or max_ before")
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


def _retrieval(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean of the queries' values."""
    import pytrec_eval
    from mteb._evaluators.retrieval_metrics import mrr

    match = re.fullmatch(r"(ndcg|map|recall|precision|hit_rate|mrr)_at_(\d+)", metric)
    if match is None:
        raise _unknown_metric(task, metric, "ndcg, map, mrr, recall, precision and hit_rate, each with _at_K")
    measure, cut = match.group(1), int(match.group(2))
    relevant = {query: documents for query, documents in data["relevant_docs"].items() if documents}
    found = {query: _kept(task, query, predictions[query]) for query in relevant if query in predictions}
    if measure == "mrr":
        return _mean(mrr(relevant, found, [cut])[f"MRR@{cut}"])
    name = _MEASURES[measure]
    values = pytrec_eval.RelevanceEvaluator(relevant, {f"{name}.{cut}"}).evaluate(found)
    return _mean([values[query][f"{name}_{cut}"] for query in found])


def _kept(task: Any, query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The documents that count: not the query itself, nor the first one, where the task says so."""
    kept = {document: s for document, s in scores.items() if not (task.ignore_identical_ids and document == query)}
    if task.skip_first_result:
        kept = dict(sorted(kept.items(), key=lambda item: item[1], reverse=True)[1:])
    return kept


def _summarization(task: Any, predictions: Any, metric: str, data: Any) -> Scorer:
    """Mean of the texts' correlations, each as the task's own evaluator computes it."""
    del data
    names = list(predictions)
    texts = [
        dict(zip(names, ([part] for part in parts), strict=True)) for parts in zip(*predictions.values(), strict=True)
    ]
    values = [task.evaluator._calculate_metrics(None, text) for text in texts]
    if values and metric not in values[0]:
        raise _unknown_metric(task, metric, ", ".join(values[0]))
    return _mean([value[metric] for value in values])


def _unknown_metric(task: Any, metric: str, known: str) -> ValueError:
    """The error for a metric that cannot be resampled."""
    return ValueError(
        f"{metric!r} of {task.metadata.name!r} cannot be resampled; of this type of task these can: {known}."
    )


def _mean(values: Any) -> Scorer:
    """The mean of one value an example."""
    values = np.asarray(values, dtype=float)
    return len(values), lambda weights: weights @ values / weights.sum(axis=-1)


_KINDS: dict[str, Callable[[Any, Any, str, Any], Scorer]] = {
    "AbsTaskClassification": _classification,
    "AbsTaskClustering": _clustering,
    "AbsTaskClusteringLegacy": _clustering_legacy,
    "AbsTaskPairClassification": _pair_classification,
    "AbsTaskRetrieval": _retrieval,
    "AbsTaskSTS": _sts,
    "AbsTaskSummarization": _summarization,
    "AbsTaskZeroShotClassification": _zero_shot,
}
"""Name of a base class of mteb → what scores its tasks; by name, since they are all of one class to a type checker."""
