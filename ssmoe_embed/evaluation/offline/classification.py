"""Tasks on labelled texts: learning the labels from examples, and finding them without any."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, v_measure_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from ssmoe_embed.evaluation.offline.bootstrap import SEED, with_interval
from ssmoe_embed.evaluation.offline.task import Encode, embed

NEIGHBOURS = 5
INVERSE_REGULARISATION = 10.0


@dataclass(frozen=True)
class ClassificationTask:
    """Labelled texts, some for training; the score is the accuracy of logistic regression on unit vectors."""

    name: str
    train: tuple[str, ...]
    train_labels: tuple[str, ...]
    test: tuple[str, ...]
    test_labels: tuple[str, ...]
    main_metric: str = "accuracy"

    @classmethod
    def from_records(cls, name: str, records: Iterable[dict[str, Any]]) -> "ClassificationTask":
        """Read records ``{text, label, split}`` whose split is ``train`` or ``test``."""
        records = list(records)
        train, test = ([r for r in records if r["split"] == split] for split in ("train", "test"))
        return cls(
            name,
            train=tuple(r["text"] for r in train),
            train_labels=tuple(r["label"] for r in train),
            test=tuple(r["text"] for r in test),
            test_labels=tuple(r["label"] for r in test),
        )

    def texts(self) -> list[str]:
        """Training texts, then test texts."""
        return [*self.train, *self.test]

    def evaluate(self, encode: Encode) -> dict[str, float]:
        """Fit on the training texts; returns ``accuracy`` with its interval, and that of the nearest neighbours."""
        train, test = (normalize(embed(encode, list(part))) for part in (self.train, self.test))
        regression = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000).fit(train, self.train_labels)
        neighbours = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(train, self.train_labels)
        gold = np.asarray(self.test_labels)
        return with_interval("accuracy", accuracy_score, gold, regression.predict(test)) | {
            "knn_accuracy": float(accuracy_score(gold, neighbours.predict(test)))
        }


@dataclass(frozen=True)
class ClusteringTask:
    """Labelled texts to be grouped without the labels; the score is the V-measure of k-means on unit vectors."""

    name: str
    members: tuple[str, ...]
    labels: tuple[str, ...]
    main_metric: str = "v_measure"

    @classmethod
    def from_records(cls, name: str, records: Iterable[dict[str, Any]]) -> "ClusteringTask":
        """Read records ``{text, label}``."""
        records = list(records)
        return cls(name, tuple(r["text"] for r in records), tuple(r["label"] for r in records))

    def texts(self) -> list[str]:
        """All texts."""
        return list(self.members)

    def evaluate(self, encode: Encode) -> dict[str, float]:
        """Cluster into as many groups as there are labels; returns ``v_measure`` with its interval."""
        vectors = normalize(embed(encode, list(self.members)))
        clusters = KMeans(len(set(self.labels)), n_init=10, random_state=SEED).fit_predict(vectors)
        return with_interval("v_measure", v_measure_score, np.asarray(self.labels), clusters)
