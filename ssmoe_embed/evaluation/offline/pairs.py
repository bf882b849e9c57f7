"""Tasks on pairs of texts: how similar they are, and whether they mean the same."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import normalize

from ssmoe_embed.evaluation.offline.bootstrap import with_interval
from ssmoe_embed.evaluation.offline.task import Encode, embed


@dataclass(frozen=True)
class SimilarityTask:
    """Pairs of texts with a degree of similarity; the score is Spearman's correlation with the cosine."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    gold: tuple[float, ...]
    main_metric: str = "spearman"

    @classmethod
    def from_records(cls, name: str, records: Iterable[dict[str, Any]]) -> "SimilarityTask":
        """Read records ``{first, second, score}``."""
        first, second, gold = _columns(records, "score")
        return cls(name, first, second, gold)

    def texts(self) -> list[str]:
        """Both sides of all pairs."""
        return [*self.first, *self.second]

    def evaluate(self, encode: Encode) -> dict[str, float]:
        """Correlate cosines with the gold similarities; constant cosines count as no correlation."""
        cosines = paired_cosines(encode, self.first, self.second)
        return with_interval("spearman", _spearman, np.asarray(self.gold), cosines)


@dataclass(frozen=True)
class PairClassificationTask:
    """Pairs of texts that mean the same (1) or not (0); the score is the average precision of the cosine."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    labels: tuple[int, ...]
    main_metric: str = "ap"

    @classmethod
    def from_records(cls, name: str, records: Iterable[dict[str, Any]]) -> "PairClassificationTask":
        """Read records ``{first, second, label}``."""
        first, second, labels = _columns(records, "label")
        return cls(name, first, second, labels)

    def texts(self) -> list[str]:
        """Both sides of all pairs."""
        return [*self.first, *self.second]

    def evaluate(self, encode: Encode) -> dict[str, float]:
        """Rank the pairs by cosine; returns ``ap`` with its interval and the area under the ROC curve."""
        labels, cosines = np.asarray(self.labels), paired_cosines(encode, self.first, self.second)
        area = float(roc_auc_score(labels, cosines))
        return with_interval("ap", average_precision_score, labels, cosines) | {"roc_auc": area}


def paired_cosines(encode: Encode, first: tuple[str, ...], second: tuple[str, ...]) -> np.ndarray:
    """Cosine of each pair, rounded so that equal pairs stay tied."""
    left, right = (normalize(embed(encode, list(side))) for side in (first, second))  # each [pairs, dimensions]
    products = left.multiply(right) if hasattr(left, "multiply") else left * right
    return np.round(np.asarray(products.sum(axis=1)).ravel(), 6)


def _spearman(gold: np.ndarray, cosines: np.ndarray) -> float:
    if np.ptp(cosines) == 0 or np.ptp(gold) == 0:
        return 0.0
    return float(spearmanr(gold, cosines).statistic)


def _columns(records: Iterable[dict[str, Any]], value: str) -> list[tuple[Any, ...]]:
    records = list(records)
    return [tuple(record[column] for record in records) for column in ("first", "second", value)]
