"""mteb tasks that need no network, on data that ship; importing them imports mteb."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from ssmoe_embed.common.lazy import require_mteb

require_mteb()

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks import (  # noqa: E402
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from ssmoe_embed.data import search_corpus  # noqa: E402
from ssmoe_embed.evaluation.tasks.retrieval import (  # noqa: E402
    SPLIT,
    RetrievalOnRecords,
    Shipped,
    identifier,
    retrieval_data,
    retrieval_task,
)

__all__ = ["OFFLINE", "add_task", "offline_task", "offline_tasks", "retrieval_task"]

_WORDNET = {
    "reference": "https://wordnet.princeton.edu",
    "date": ("1985-01-01", "2006-12-31"),
    "domains": ["Encyclopaedic", "Written"],
    "license": "https://wordnet.princeton.edu/license-and-commercial-use",
    "annotations_creators": "derived",
    "sample_creation": "created",
    "bibtex_citation": "",
}
"""Of the tasks made of WordNet entries; the bundled model's training saw none of these entries."""
_DOMAINS = "noun.food, verb.motion and so on: the 22 largest of the files into which WordNet's lexicographers sort"
_LEAST_SHARED = "the answer shares no content word with the query, and wrong documents share some"
_HOWTO_DOCUMENTS = 600
"""Of the search corpus's 1,895, so that a model with five methods is through in minutes."""


class _LabelledTexts(Shipped, AbsTaskClassification):
    """Classification of the records ``{text, label, split}`` of a file; labels are numbered in alphabetical order."""

    kind, main_score = "Classification", "accuracy"

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


class WordNetDomainClassification(
    _LabelledTexts,
    file="lexicographer.jsonl",
    description=f"Definitions of held-out words by their domain ({_DOMAINS} entries).",
    task_subtypes=["Topic classification"],
    **_WORDNET,
):
    """Which lexicographer file a definition is from."""

    samples_per_label = 16


class ReviewSnippetSentimentClassification(
    _LabelledTexts,
    file="review_sentiment.jsonl",
    description="Sentences of product reviews, positive or negative by the mean of 20 raters (vaderSentiment 3.3.2); only "
    "sentences that are clearly one or the other, and no review in both splits.",
    reference="https://github.com/cjhutto/vaderSentiment",
    date=("2003-01-01", "2014-05-30"),
    domains=["Reviews", "Written"],
    task_subtypes=["Sentiment/Hate speech"],
    license="mit",
    annotations_creators="human-annotated",
    sample_creation="found",
    bibtex_citation="",
):
    """Whether a sentence of a product review is positive."""

    samples_per_label = 32


class WordNetDomainClustering(
    Shipped,
    AbsTaskClustering,
    file="lexicographer.jsonl",
    description=f"Definitions of held-out words, to be grouped by domain ({_DOMAINS} entries).",
    task_subtypes=["Thematic clustering"],
    **_WORDNET,
):
    """The same definitions, to be grouped without labels."""

    kind, main_score = "Clustering", "v_measure"
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 1000

    def read(self) -> DatasetDict:
        """All texts, of both splits."""
        records = self.records()
        columns = {"sentences": [r["text"] for r in records], "labels": [r["label"] for r in records]}
        return DatasetDict({SPLIT: Dataset.from_dict(columns)})

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As mteb does, but on the same samples each time, also where one task object is used for several models."""
        self.rng_state = random.Random(self.seed)
        return super().evaluate(*args, **kwargs)


def _pairs(records: list[dict[str, Any]], value: str, column: str) -> DatasetDict:
    """A data set of records ``{first, second, value}``."""
    rows = [{"sentence1": r["first"], "sentence2": r["second"], column: r[value]} for r in records]
    return DatasetDict({SPLIT: Dataset.from_list(rows)})


class WordNetParaphrasePairClassification(
    Shipped,
    AbsTaskPairClassification,
    file="paraphrase_pairs.jsonl",
    description="Definitions of held-out words that are derived, similar or next broader to each other and share no content "
    "word, against false pairs of which half share much and half nothing.",
    **_WORDNET,
):
    """Whether two definitions mean almost the same."""

    kind, main_score = "PairClassification", "cosine_ap"

    def read(self) -> DatasetDict:
        """The pairs and their labels."""
        return _pairs(self.records(), "label", "labels")


class _RatedPairs(Shipped, AbsTaskSTS):
    """Pairs of texts with a degree of similarity."""

    kind, main_score = "STS", "cosine_spearman"

    def read(self) -> DatasetDict:
        """The pairs and their scores."""
        return _pairs(self.records(), "score", "score")

    def _calculate_scores(self, *args: Any, **kwargs: Any) -> Any:
        """As mteb does, but constant similarities count as no correlation rather than as no number."""
        scores = super()._calculate_scores(*args, **kwargs)
        return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


class WordNetSimilaritySTS(
    _RatedPairs,
    file="similarity.jsonl",
    description="Definitions of held-out nouns by their Wu-Palmer similarity in WordNet, with as many pairs of each degree "
    "of word overlap for each degree of similarity. The gold scores are derived, not rated.",
    **_WORDNET,
):
    """How near two nouns are in WordNet, by their definitions."""

    min_score, max_score = 0, 1


class WordRelatednessSTS(
    _RatedPairs,
    file="word_relatedness.jsonl",
    description="The 352 pairs of different words of WordSim-353 (as gensim 4.4.0 ships it), each rated by 13 to 16 people. "
    "Single words, some of which the bundled model's training saw.",
    reference="https://gabrilovich.com/resources/data/wordsim353/wordsim353.html",
    date=("1965-01-01", "2002-02-10"),
    domains=["Constructed", "Written"],
    license="cc-by-4.0",
    annotations_creators="human-annotated",
    sample_creation="created",
    bibtex_citation="",
):
    """How related people find two words."""

    min_score, max_score = 0, 10


class WordNetExampleRetrieval(
    RetrievalOnRecords,
    file="definition_to_example.jsonl",
    description=f"A sentence that uses a held-out word, by the word's definition; {_LEAST_SHARED}.",
    **_WORDNET,
):
    """From a definition to a sentence that uses the word."""


class WordNetRelatedRetrieval(
    RetrievalOnRecords,
    file="related_definition.jsonl",
    description="The definition of a derived, similar or next broader word, by the definition of a held-out word; "
    f"{_LEAST_SHARED}.",
    **_WORDNET,
):
    """From a definition to that of a related word."""


class WordNetReverseRetrieval(
    RetrievalOnRecords,
    file="reverse_dictionary.jsonl",
    description=f"The words that a definition defines, by a question around it; {_LEAST_SHARED}.",
    **_WORDNET,
):
    """From a definition to the word."""


class HowToRetrieval(
    RetrievalOnRecords,
    file="howto_search.jsonl",
    description="Questions in a person's own words, to be answered from 600 documents of the package's search corpus: short "
    "answers written for the project, which the bundled model never saw, and sections of manuals, of which it saw some.",
    reference="https://docs.python.org/3.11/",
    date=("2022-08-11", "2026-11-22"),
    domains=["Programming", "Written"],
    task_subtypes=["Question answering"],
    license="multiple",
    annotations_creators="expert-annotated",
    sample_creation="created",
    bibtex_citation="",
):
    """From a question to the answer in the search corpus."""

    def records(self) -> list[dict[str, Any]]:
        """All answers, the project's own documents and some sections of manuals; then the questions."""
        questions = super().records()
        answers = {document for question in questions for document in question["relevant"]}
        needed = sorted(
            search_corpus(), key=lambda d: (d.id not in answers, d.source != "ssmoe_embed", identifier(d.id))
        )
        return [{"id": one.id, "document": one.full_text} for one in needed[:_HOWTO_DOCUMENTS]] + questions


class BibleVerseReranking(
    Shipped,
    AbsTaskRetrieval,
    file="verse_reranking.jsonl",
    description="A verse of the King James Bible, by which the same verse of the World English Bible is to be ranked first "
    "among 16 of its book: neighbours in the text and those that share the most words with the query. Only verses for which "
    "the two have few content words in common.",
    reference="https://ebible.org/web/",
    date=("1611-01-01", "2022-12-28"),
    domains=["Religious", "Written"],
    license="https://creativecommons.org/publicdomain/mark/1.0/",
    annotations_creators="derived",
    sample_creation="found",
    bibtex_citation="",
):
    """From a verse in the words of 1611 to the same verse in today's."""

    kind, main_score = "Reranking", "map_at_1000"

    def read(self) -> dict[str, Any]:
        """Corpus, queries and candidates from records ``{query, positive: [texts], negative: [texts]}``."""
        queries = {f"q{i}": record for i, record in enumerate(self.records())}
        candidates = {key: record["positive"] + record["negative"] for key, record in queries.items()}
        texts = sorted({text for found in candidates.values() for text in found})
        return retrieval_data(
            documents={identifier(text): text for text in texts},
            queries={key: record["query"] for key, record in queries.items()},
            relevant={key: [identifier(text) for text in record["positive"]] for key, record in queries.items()},
            candidates={key: sorted(map(identifier, found)) for key, found in candidates.items()},
        )


OFFLINE: tuple[type[AbsTask], ...] = (
    WordNetDomainClassification,
    ReviewSnippetSentimentClassification,
    WordNetDomainClustering,
    WordNetParaphrasePairClassification,
    BibleVerseReranking,
    WordNetExampleRetrieval,
    WordNetRelatedRetrieval,
    WordNetReverseRetrieval,
    HowToRetrieval,
    WordNetSimilaritySTS,
    WordRelatednessSTS,
)
_added: dict[str, AbsTask] = {}


def offline_tasks() -> list[AbsTask]:
    """New objects of all shipped tasks, in the order of a table's columns: at least one of each of six types.

    The bundled model's training saw none of the WordNet entries, reviews and verses; it may have seen single words of
    `WordRelatednessSTS`, and sections of manuals among the documents of `HowToRetrieval`.
    """
    return [kind() for kind in OFFLINE]


def offline_task(name: str) -> AbsTask | None:
    """The task of that name that ships or was added; None if there is none."""
    for kind in OFFLINE:
        if kind.metadata.name == name:
            return kind()
    return _added.get(name)


def add_task(task: AbsTask) -> None:
    """Make a task of one's own known by name for this process, to baselines that read a task's texts.

    Raises:
        ValueError: A shipped task has that name.
    """
    name = task.metadata.name
    if any(kind.metadata.name == name for kind in OFFLINE):
        raise ValueError(f"A shipped task is already called {name!r}; give yours another name.")
    _added[name] = task
