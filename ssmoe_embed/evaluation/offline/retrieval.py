"""Retrieval and reranking: which document answers a query."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from ssmoe_embed.data import read_records, search_corpus
from ssmoe_embed.evaluation.offline.metadata import SPLIT, WORDNET, Shipped, make_metadata, offline_metadata

HOWTO_DOCUMENTS = 600
"""Of the search corpus's 1,895, so that a model with five methods is through in minutes."""
_LEAST_SHARED = "the answer shares no content word with the query, and wrong documents share some"


class _Retrieval(Shipped, AbsTaskRetrieval):
    """Retrieval on records of the two kinds ``{id, document}`` and ``{query, relevant: [ids]}``."""

    metadata: TaskMetadata

    def records(self) -> Iterable[dict[str, Any]]:
        """Documents and queries."""
        return read_records(f"offline/{self.file}")

    def read(self) -> dict[str, Any]:
        """Corpus, queries and relevant documents."""
        return {"default": {SPLIT: _split(self.metadata.name, self.records())}}


class WordNetExampleRetrieval(_Retrieval):
    """From a definition to a sentence that uses the word."""

    file = "definition_to_example.jsonl"
    metadata = offline_metadata(
        "WordNetExampleRetrieval",
        "Retrieval",
        "ndcg_at_10",
        f"A sentence that uses a held-out word, by the word's definition; {_LEAST_SHARED}.",
        file,
        **WORDNET,
    )


class WordNetRelatedRetrieval(_Retrieval):
    """From a definition to that of a related word."""

    file = "related_definition.jsonl"
    metadata = offline_metadata(
        "WordNetRelatedRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "The definition of a derived, similar or next broader word, by the definition of a held-out word; "
        f"{_LEAST_SHARED}.",
        file,
        **WORDNET,
    )


class WordNetReverseRetrieval(_Retrieval):
    """From a definition to the word."""

    file = "reverse_dictionary.jsonl"
    metadata = offline_metadata(
        "WordNetReverseRetrieval",
        "Retrieval",
        "ndcg_at_10",
        f"The words that a definition defines, by a question around it; {_LEAST_SHARED}.",
        file,
        **WORDNET,
    )


class HowToRetrieval(_Retrieval):
    """From a question to the answer in the search corpus."""

    file = "howto_search.jsonl"
    metadata = offline_metadata(
        "HowToRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Questions in a person's own words, to be answered from 600 documents of the package's search corpus: short answers "
        "written for the project, which the embedded model never saw, and sections of manuals, of which it saw some.",
        file,
        reference="https://docs.python.org/3.11/",
        date=("2022-08-11", "2026-11-22"),
        domains=["Programming", "Written"],
        task_subtypes=["Question answering"],
        license="multiple",
        annotations_creators="expert-annotated",
        sample_creation="created",
        bibtex_citation="",
    )

    def records(self) -> Iterable[dict[str, Any]]:
        """All answers, the project's own documents and some sections of manuals; then the questions."""
        questions = list(read_records(f"offline/{self.file}"))
        answers = {identifier for question in questions for identifier in question["relevant"]}
        needed = sorted(
            search_corpus(), key=lambda d: (d.id not in answers, d.source != "ssmoe_embed", _identifier(d.id))
        )
        yield from ({"id": document.id, "document": document.full_text} for document in needed[:HOWTO_DOCUMENTS])
        yield from questions


class BibleVerseReranking(Shipped, AbsTaskRetrieval):
    """From a verse in the words of 1611 to the same verse in today's."""

    file = "verse_reranking.jsonl"
    metadata = offline_metadata(
        "BibleVerseReranking",
        "Reranking",
        "map_at_1000",
        "A verse of the King James Bible, by which the same verse of the World English Bible is to be ranked first among 16 "
        "of its book: neighbours in the text and those that share the most words with the query. Only verses for which the "
        "two have few content words in common.",
        file,
        reference="https://ebible.org/web/",
        date=("1611-01-01", "2022-12-28"),
        domains=["Religious", "Written"],
        license="https://creativecommons.org/publicdomain/mark/1.0/",
        annotations_creators="derived",
        sample_creation="found",
        bibtex_citation="",
    )

    def read(self) -> dict[str, Any]:
        """Corpus, queries and candidates from records ``{query, positive: [texts], negative: [texts]}``."""
        records = list(read_records(f"offline/{self.file}"))
        texts = sorted({text for r in records for text in r["positive"] + r["negative"]})
        ids = {text: _identifier(text) for text in texts}
        queries = {f"q{i}": record for i, record in enumerate(records)}
        data = {
            "corpus": Dataset.from_list([{"id": ids[text], "text": text} for text in texts]),
            "queries": Dataset.from_list([{"id": key, "text": record["query"]} for key, record in queries.items()]),
            "relevant_docs": {key: {ids[text]: 1 for text in record["positive"]} for key, record in queries.items()},
            "top_ranked": {
                key: sorted(ids[text] for text in record["positive"] + record["negative"])
                for key, record in queries.items()
            },
        }
        return {"default": {SPLIT: data}}


def retrieval_task(path: Path) -> AbsTaskRetrieval:
    """A retrieval task from a JSON-lines file of one's own, named after the file.

    Args:
        path: File with records ``{id, document}`` and ``{query, relevant: [ids]}``.

    Raises:
        ValueError: A query names a document that is not among the records.
    """
    content = path.read_bytes()
    lines = [json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip()]

    class FromFile(_Retrieval):
        metadata = make_metadata(
            path.stem,
            "Retrieval",
            "ndcg_at_10",
            f"Documents and queries of {path.name}.",
            (path.name, hashlib.sha256(content).hexdigest()),
        )

        def records(self) -> Iterable[dict[str, Any]]:
            return lines

    task = FromFile()
    task.load_data()
    return task


def _split(name: str, records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Corpus, queries and relevant documents; the ids of texts are digests, so that ties are broken by chance."""
    records = list(records)
    documents = {str(r["id"]): r["document"] for r in records if "document" in r}
    ids = {key: _identifier(f"{key} {text}") for key, text in documents.items()}
    queries: list[dict[str, str]] = []
    relevant: dict[str, dict[str, int]] = {}
    for record in (r for r in records if "query" in r):
        missing = [key for key in record["relevant"] if str(key) not in ids]
        if missing:
            msg = f"The query {record['query']!r} of task {name!r} names the unknown documents {missing}."
            raise ValueError(msg)
        key = f"q{len(queries)}"
        queries.append({"id": key, "text": record["query"]})
        relevant[key] = {ids[str(document)]: 1 for document in record["relevant"]}
    return {
        "corpus": Dataset.from_list([{"id": ids[key], "text": text} for key, text in documents.items()]),
        "queries": Dataset.from_list(queries),
        "relevant_docs": relevant,
        "top_ranked": None,
    }


def _identifier(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
