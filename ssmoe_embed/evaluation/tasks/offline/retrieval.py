"""Retrieval and reranking: which document answers a query."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from ssmoe_embed.data import search_corpus
from ssmoe_embed.evaluation.tasks.offline.texts import SPLIT, WORDNET, Shipped, make_metadata, offline_metadata

HOWTO_DOCUMENTS = 600
"""Of the search corpus's 1,895, so that a model with five methods is through in minutes."""
_LEAST_SHARED = "the answer shares no content word with the query, and wrong documents share some"


class RetrievalOnRecords(Shipped, AbsTaskRetrieval):
    """Retrieval on records of the two kinds ``{id, document}`` and ``{query, relevant: [ids]}``."""

    metadata: TaskMetadata

    def read(self) -> dict[str, Any]:
        """Corpus, queries and relevant documents; the ids of texts are digests, so that ties are broken by chance."""
        records = self.records()
        texts = {str(r["id"]): r["document"] for r in records if "document" in r}
        ids = {key: _identifier(f"{key} {text}") for key, text in texts.items()}
        queries = {f"q{i}": record for i, record in enumerate(r for r in records if "query" in r)}
        for record in queries.values():
            missing = [document for document in record["relevant"] if str(document) not in ids]
            if missing:
                raise ValueError(
                    f"The query {record['query']!r} of task {self.metadata.name!r} names the unknown documents {missing}; "
                    "give each of them a record with its id, or leave it out of the query's."
                )
        return _data_set(
            documents={ids[key]: text for key, text in texts.items()},
            queries={key: record["query"] for key, record in queries.items()},
            relevant={key: [ids[str(document)] for document in record["relevant"]] for key, record in queries.items()},
        )


class WordNetExampleRetrieval(RetrievalOnRecords):
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


class WordNetRelatedRetrieval(RetrievalOnRecords):
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


class WordNetReverseRetrieval(RetrievalOnRecords):
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


class HowToRetrieval(RetrievalOnRecords):
    """From a question to the answer in the search corpus."""

    file = "howto_search.jsonl"
    metadata = offline_metadata(
        "HowToRetrieval",
        "Retrieval",
        "ndcg_at_10",
        "Questions in a person's own words, to be answered from 600 documents of the package's search corpus: short answers "
        "written for the project, which the bundled model never saw, and sections of manuals, of which it saw some.",
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

    def records(self) -> list[dict[str, Any]]:
        """All answers, the project's own documents and some sections of manuals; then the questions."""
        questions = super().records()
        answers = {identifier for question in questions for identifier in question["relevant"]}
        needed = sorted(
            search_corpus(), key=lambda d: (d.id not in answers, d.source != "ssmoe_embed", _identifier(d.id))
        )
        return [{"id": one.id, "document": one.full_text} for one in needed[:HOWTO_DOCUMENTS]] + questions


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
        queries = {f"q{i}": record for i, record in enumerate(self.records())}
        candidates = {key: record["positive"] + record["negative"] for key, record in queries.items()}
        texts = sorted({text for found in candidates.values() for text in found})
        return _data_set(
            documents={_identifier(text): text for text in texts},
            queries={key: record["query"] for key, record in queries.items()},
            relevant={key: [_identifier(text) for text in record["positive"]] for key, record in queries.items()},
            candidates={key: sorted(map(_identifier, found)) for key, found in candidates.items()},
        )


def _data_set(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    relevant: Mapping[str, Iterable[str]],
    candidates: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """The data set of a retrieval task, as mteb wants it.

    Args:
        documents: Text by id.
        queries: Text by id.
        relevant: Ids of the documents that answer a query, by its id.
        candidates: Ids of the documents to rank for a query, by its id; None for all documents.
    """
    data = {
        "corpus": Dataset.from_list([{"id": key, "text": text} for key, text in documents.items()]),
        "queries": Dataset.from_list([{"id": key, "text": text} for key, text in queries.items()]),
        "relevant_docs": {query: dict.fromkeys(found, 1) for query, found in relevant.items()},
        "top_ranked": candidates,
    }
    return {"default": {SPLIT: data}}


def _identifier(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


_KINDS = '{"id": 1, "document": "text"} or {"query": "text", "relevant": [1]}'


def retrieval_task(path: Path) -> AbsTaskRetrieval:
    """A retrieval task from a JSON-lines file of one's own, named after the file.

    Args:
        path: File with records ``{id, document}`` and ``{query, relevant: [ids]}``.

    Raises:
        ValueError: A line is no such record, an id comes twice, there is no document or no query, or a query names a
            document that is not there; the message says where.
    """
    content = path.read_bytes()
    lines = _records(path.name, content.decode("utf-8"))

    class FromFile(RetrievalOnRecords):
        metadata = make_metadata(
            path.stem,
            "Retrieval",
            "ndcg_at_10",
            f"Documents and queries of {path.name}.",
            (path.name, hashlib.sha256(content).hexdigest()),
        )

        def records(self) -> list[dict[str, Any]]:
            return lines

    task = FromFile()
    task.load_data()
    return task


def _records(name: str, text: str) -> list[dict[str, Any]]:
    """The records of a file, looked at one by one."""
    found: list[dict[str, Any]] = []
    ids: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):  # a text may hold Unicode's other ends of lines
        if not line.strip():
            continue
        record = _parsed(line)
        if record is None:
            raise ValueError(f"Line {number} of {name} is no record; write {_KINDS}.")
        if "id" in record and str(record["id"]) in ids:
            raise ValueError(f"Line {number} of {name} has the id {record['id']!r} again; ids must be unique.")
        ids |= {str(record["id"])} if "id" in record else set()
        found.append(record)
    for kind in ("document", "query"):
        if not any(kind in record for record in found):
            raise ValueError(f"{name} has no {kind}; add lines such as {_KINDS}.")
    return found


def _parsed(line: str) -> dict[str, Any] | None:
    """A line's record; None if it is neither a document nor a query with its answers."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(record, dict):
        return None
    document = "id" in record and isinstance(record.get("document"), str)
    relevant = record.get("relevant")
    query = isinstance(record.get("query"), str) and isinstance(relevant, list) and relevant != []
    return record if document != query else None
