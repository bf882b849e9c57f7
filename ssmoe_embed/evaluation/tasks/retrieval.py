"""Retrieval on records, of the package's or of a file of one's own; and what all tasks on records share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ssmoe_embed.common.lazy import require_mteb

require_mteb()

from datasets import Dataset  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

from ssmoe_embed.data import read_records  # noqa: E402

SPLIT = "test"


def make_metadata(
    name: str, kind: str, main_score: str, description: str, dataset: tuple[str, str], **others: Any
) -> TaskMetadata:
    """The metadata of an English task on texts.

    Args:
        name: The task's name.
        kind: mteb's type of task.
        main_score: mteb's name of the score that counts.
        description: What is asked, and where the texts are from.
        dataset: Its place and revision.
        **others: Reference, dates, domains, licence and whatever else is known.
    """
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


class Shipped(ABC):
    """A task whose data are read from the package, once.

    A class of a file, `class Name(Base, file=…, description=…, …)`, gets the metadata that `make_metadata` makes of that.

    Attributes:
        file: Name of the data file in ``ssmoe_embed/data/offline``; the revision is a digest of its content.
        kind: mteb's type of task.
        main_score: mteb's name of the score that counts.
    """

    file: str
    kind: str
    main_score: str
    data_loaded: bool = False
    metadata: TaskMetadata
    dataset: Any

    def __init_subclass__(cls, file: str = "", description: str = "", **others: Any) -> None:
        super().__init_subclass__()
        if file:
            content = resources.files("ssmoe_embed.data").joinpath("offline", file).read_bytes()
            dataset = (f"ssmoe_embed/data/offline/{file}", hashlib.sha256(content).hexdigest())
            cls.file = file
            cls.metadata = make_metadata(cls.__name__, cls.kind, cls.main_score, description, dataset, **others)

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


class RetrievalOnRecords(Shipped, AbsTaskRetrieval):
    """Retrieval on records of the two kinds ``{id, document}`` and ``{query, relevant: [ids]}``."""

    kind, main_score = "Retrieval", "ndcg_at_10"

    def read(self) -> dict[str, Any]:
        """Corpus, queries and relevant documents; the ids of texts are digests, so that ties are broken by chance."""
        records = self.records()
        texts = {str(r["id"]): r["document"] for r in records if "document" in r}
        ids = {key: identifier(f"{key} {text}") for key, text in texts.items()}
        queries = {f"q{i}": record for i, record in enumerate(r for r in records if "query" in r)}
        for record in queries.values():
            missing = [document for document in record["relevant"] if str(document) not in ids]
            if missing:
                raise ValueError(
                    f"The query {record['query']!r} of task {self.metadata.name!r} names the unknown documents {missing}; "
                    "give each of them a record with its id, or leave it out of the query's."
                )
        return retrieval_data(
            documents={ids[key]: text for key, text in texts.items()},
            queries={key: record["query"] for key, record in queries.items()},
            relevant={key: [ids[str(document)] for document in record["relevant"]] for key, record in queries.items()},
        )


def retrieval_data(
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


def identifier(text: str) -> str:
    """A text's id, by which ties are broken by chance."""
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
            RetrievalOnRecords.kind,
            RetrievalOnRecords.main_score,
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
