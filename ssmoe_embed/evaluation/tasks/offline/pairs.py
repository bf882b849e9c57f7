"""Tasks on pairs of texts: how similar they are, and whether they mean the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskPairClassification, AbsTaskSTS

from ssmoe_embed.evaluation.tasks.offline.metadata import SPLIT, WORDNET, Shipped, offline_metadata


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
