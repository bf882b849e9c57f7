"""Tasks on labelled texts: learning the labels from examples, and finding them without any."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering

from ssmoe_embed.evaluation.tasks.offline.metadata import SPLIT, WORDNET, Shipped, offline_metadata

_DOMAINS = "noun.food, verb.motion and so on: the 22 largest of the files into which WordNet's lexicographers sort"


class _LabelledTexts(Shipped, AbsTaskClassification):
    """Classification of the records ``{text, label, split}`` of a file; labels are numbered in alphabetical order."""

    def read(self) -> DatasetDict:
        """Training and test texts."""
        records = self.records()
        labels = sorted({record["label"] for record in records})
        rows: dict[str, list[dict[str, Any]]] = {"train": [], SPLIT: []}
        for record in records:
            rows[record["split"]].append({"text": record["text"], "label": labels.index(record["label"])})
        return DatasetDict({split: Dataset.from_list(part) for split, part in rows.items()})

    def _calculate_scores(self, y_test: Any, y_pred: Any) -> Any:
        """As mteb does, from an array: a column of a data set is read anew, row by row, for each of seven metrics."""
        return super()._calculate_scores(np.asarray(y_test[:]), y_pred)


class WordNetDomainClassification(_LabelledTexts):
    """Which lexicographer file a definition is from."""

    file = "lexicographer.jsonl"
    samples_per_label = 16
    metadata = offline_metadata(
        "WordNetDomainClassification",
        "Classification",
        "accuracy",
        f"Definitions of held-out words by their domain ({_DOMAINS} entries).",
        file,
        **WORDNET | {"task_subtypes": ["Topic classification"]},
    )


class ReviewSnippetSentimentClassification(_LabelledTexts):
    """Whether a sentence of a product review is positive."""

    file = "review_sentiment.jsonl"
    samples_per_label = 32
    metadata = offline_metadata(
        "ReviewSnippetSentimentClassification",
        "Classification",
        "accuracy",
        "Sentences of product reviews, positive or negative by the mean of 20 raters (vaderSentiment 3.3.2); only "
        "sentences that are clearly one or the other, and no review in both splits.",
        file,
        reference="https://github.com/cjhutto/vaderSentiment",
        date=("2003-01-01", "2014-05-30"),
        domains=["Reviews", "Written"],
        task_subtypes=["Sentiment/Hate speech"],
        license="mit",
        annotations_creators="human-annotated",
        sample_creation="found",
        bibtex_citation="",
    )


class WordNetDomainClustering(Shipped, AbsTaskClustering):
    """The same definitions, to be grouped without labels."""

    file = "lexicographer.jsonl"
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 1000
    metadata = offline_metadata(
        "WordNetDomainClustering",
        "Clustering",
        "v_measure",
        f"Definitions of held-out words, to be grouped by domain ({_DOMAINS} entries).",
        file,
        **WORDNET | {"task_subtypes": ["Thematic clustering"]},
    )

    def read(self) -> DatasetDict:
        """All texts, of both splits."""
        records = self.records()
        columns = {"sentences": [r["text"] for r in records], "labels": [r["label"] for r in records]}
        return DatasetDict({SPLIT: Dataset.from_dict(columns)})

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As mteb does, but on the same samples each time, also where one task object is used for several models."""
        self.rng_state = random.Random(self.seed)
        return super().evaluate(*args, **kwargs)
