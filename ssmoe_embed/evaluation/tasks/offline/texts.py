"""Tasks on labelled texts and on pairs of texts, and what all offline tasks share: data that ship, and mteb's questions."""

from __future__ import annotations

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskPairClassification, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from ssmoe_embed.data import read_records

SPLIT = "test"
WORDNET = {
    "reference": "https://wordnet.princeton.edu",
    "date": ("1985-01-01", "2006-12-31"),
    "domains": ["Encyclopaedic", "Written"],
    "license": "https://wordnet.princeton.edu/license-and-commercial-use",
    "annotations_creators": "derived",
    "sample_creation": "created",
    "bibtex_citation": "",
}
"""Of the tasks made of WordNet entries; the bundled model's training saw none of these entries."""


class Shipped(ABC):
    """A task whose data are read from the package, once.

    Attributes:
        file: Name of the data file in ``ssmoe_embed/data/offline``.
    """

    file: str
    data_loaded: bool = False
    dataset: Any

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read the records that ship."""
        del num_proc, kwargs
        if not self.data_loaded:
            self.dataset = self.read()
            self.data_loaded = True

    def records(self) -> list[dict[str, Any]]:
        """The records of the file."""
        return list(read_records(f"offline/{self.file}"))

    @abstractmethod
    def read(self) -> Any:
        """The data set as mteb wants it for this type of task."""


def offline_metadata(name: str, kind: str, main_score: str, description: str, file: str, **others: Any) -> TaskMetadata:
    """The metadata of an English task whose data ship with the package.

    Args:
        name: The task's name.
        kind: mteb's type of task.
        main_score: mteb's name of the score that counts.
        description: What is asked, and where the texts are from.
        file: Name of the data file in ``ssmoe_embed/data/offline``; the revision is a digest of its content.
        **others: Reference, dates, domains, licence and whatever else is known.
    """
    content = resources.files("ssmoe_embed.data").joinpath("offline", file).read_bytes()
    dataset = (f"ssmoe_embed/data/offline/{file}", hashlib.sha256(content).hexdigest())
    return make_metadata(name, kind, main_score, description, dataset, **others)


def make_metadata(
    name: str, kind: str, main_score: str, description: str, dataset: tuple[str, str], **others: Any
) -> TaskMetadata:
    """The metadata of an English task on texts; `dataset` is its place and revision."""
    return TaskMetadata(
        dataset={"path": dataset[0], "revision": dataset[1][:40]},
        name=name,
        description=description,
        type=kind,
        category="t2c" if kind in {"Classification", "Clustering"} else "t2t",
        modalities=["text"],
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        **{"task_subtypes": [], "dialect": [], **others},
    )


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


def _pairs(records: Iterable[Mapping[str, Any]], value: str, column: str) -> DatasetDict:
    """A data set of records ``{first, second, value}``."""
    rows = [{"sentence1": r["first"], "sentence2": r["second"], column: r[value]} for r in records]
    return DatasetDict({SPLIT: Dataset.from_list(rows)})


class WordNetParaphrasePairClassification(Shipped, AbsTaskPairClassification):
    """Whether two definitions mean almost the same."""

    file = "paraphrase_pairs.jsonl"
    metadata = offline_metadata(
        "WordNetParaphrasePairClassification",
        "PairClassification",
        "cosine_ap",
        "Definitions of held-out words that are derived, similar or next broader to each other and share no content word, "
        "against false pairs of which half share much and half nothing.",
        file,
        **WORDNET,
    )

    def read(self) -> DatasetDict:
        """The pairs and their labels."""
        return _pairs(self.records(), "label", "labels")


class _RatedPairs(Shipped, AbsTaskSTS):
    """Pairs of texts with a degree of similarity."""

    def read(self) -> DatasetDict:
        """The pairs and their scores."""
        return _pairs(self.records(), "score", "score")

    def _calculate_scores(self, *args: Any, **kwargs: Any) -> Any:
        """As mteb does, but constant similarities count as no correlation rather than as no number."""
        scores = super()._calculate_scores(*args, **kwargs)
        return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


class WordNetSimilaritySTS(_RatedPairs):
    """How near two nouns are in WordNet, by their definitions."""

    file = "similarity.jsonl"
    min_score, max_score = 0, 1
    metadata = offline_metadata(
        "WordNetSimilaritySTS",
        "STS",
        "cosine_spearman",
        "Definitions of held-out nouns by their Wu-Palmer similarity in WordNet, with as many pairs of each degree of word "
        "overlap for each degree of similarity. The gold scores are derived, not rated.",
        file,
        **WORDNET,
    )


class WordRelatednessSTS(_RatedPairs):
    """How related people find two words."""

    file = "word_relatedness.jsonl"
    min_score, max_score = 0, 10
    metadata = offline_metadata(
        "WordRelatednessSTS",
        "STS",
        "cosine_spearman",
        "The 352 pairs of different words of WordSim-353 (as gensim 4.4.0 ships it), each rated by 13 to 16 people. Single "
        "words, some of which the bundled model's training saw.",
        file,
        reference="https://gabrilovich.com/resources/data/wordsim353/wordsim353.html",
        date=("1965-01-01", "2002-02-10"),
        domains=["Constructed", "Written"],
        license="cc-by-4.0",
        annotations_creators="human-annotated",
        sample_creation="created",
        bibtex_citation="",
    )
