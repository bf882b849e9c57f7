"""A task's score, computed again from mteb's prediction files, on any resample of the task's examples.

A resample is a weight for each example: how often it was drawn. A `Rescore` maps weights of shape [B, n] to B scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssmoe_embed.evaluation.significance.rescoring.classification import classification
from ssmoe_embed.evaluation.significance.rescoring.clustering import clustering, clustering_legacy
from ssmoe_embed.evaluation.significance.rescoring.common import Rescore, Scorer
from ssmoe_embed.evaluation.significance.rescoring.pairs import pair_classification, sts
from ssmoe_embed.evaluation.significance.rescoring.ranking import retrieval, summarization

__all__ = ["Rescore", "Scorer", "scorer"]

_KINDS: dict[str, Callable[[Any, Any, str, Any], Scorer]] = {
    "AbsTaskClassification": classification,
    "AbsTaskClustering": clustering,
    "AbsTaskClusteringLegacy": clustering_legacy,
    "AbsTaskPairClassification": pair_classification,
    "AbsTaskRetrieval": retrieval,
    "AbsTaskSTS": sts,
    "AbsTaskSummarization": summarization,
}
"""Name of a base class of mteb → what scores its tasks; by name, since they are all of one class to a type checker."""


def scorer(task: Any, predictions: Any, metric: str, split: str, subset: str) -> Scorer:
    """What computes a task's score from a model's predictions.

    Args:
        task: A task of mteb, with its data loaded.
        predictions: What mteb wrote for the split and subset.
        metric: mteb's name of the score.
        split: The split.
        subset: The subset.

    Raises:
        ValueError: The predictions do not suffice for tasks of this type, or for this metric.
    """
    data = _gold(task, split, subset)
    kind = next(base.__name__ for base in type(task).__mro__ if base.__name__.startswith("AbsTask"))
    if kind in _KINDS and not getattr(task, "is_cross_validation", False):
        return _KINDS[kind](task, predictions, metric, data)
    msg = (
        f"The predictions that mteb writes for {task.metadata.name!r} ({task.metadata.type}) do not suffice to resample "
        "its examples; choose a task of classification, clustering, pair classification, reranking, retrieval, STS or "
        "summarization."
    )
    raise ValueError(msg)


def _gold(task: Any, split: str, subset: str) -> Any:
    data = task.dataset
    return data[split] if subset == "default" and subset not in data else data[subset][split]
