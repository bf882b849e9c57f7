"""What the offline tasks share: reading the data that ship, and what mteb wants to know of a task."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from importlib import resources
from typing import Any

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
