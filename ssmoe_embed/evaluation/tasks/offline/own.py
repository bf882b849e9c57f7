"""A retrieval task from a file of one's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTaskRetrieval

from ssmoe_embed.evaluation.tasks.offline.metadata import make_metadata
from ssmoe_embed.evaluation.tasks.offline.retrieval import RetrievalOnRecords

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
