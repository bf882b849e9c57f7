"""What can be wrong with an index, and the small file that names its files; replacing it publishes a generation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssmoe_embed.common.files import atomic_file

RECOVERY = "copy the index again, or index the corpus again into another folder"
"""What to do where documents or vectors are lost."""

UNHARMED = "nothing that was published is lost; make room if the disk is full, and repeat the command"
"""What to do where a change could not be written."""


class DamagedIndexError(ValueError):
    """A file of the index is missing, cut short or not what the others say it is."""


class WrongModelError(ValueError):
    """The index was made with another model."""


class BusyIndexError(ValueError):
    """Somebody else is writing to the index."""


NAME = "manifest.json"
FORMAT = 2
RECALL = 0.97
"""Of the ten nearest documents, the share that an approximate search should find."""


@dataclass(frozen=True)
class StoredFile:
    """A finished file of the index.

    Attributes:
        name: Its name in the folder.
        size: Bytes.
        sha256: Of all of it.
        rows: How many vectors it covers, from the first.
    """

    name: str
    size: int
    sha256: str
    rows: int

    def check(self, folder: Path) -> Path:
        """Its path, if it is there in full.

        Raises:
            DamagedIndexError: It is missing or has another size.
        """
        path = folder / self.name
        found = path.stat().st_size if path.is_file() else None
        if found != self.size:
            state = "is missing" if found is None else f"has {found} bytes instead of {self.size}"
            raise DamagedIndexError(
                f"{path} {state}; the documents and vectors are elsewhere: rebuild it with "
                f"`ssmoe index --rebuild --output {folder}`."
            )
        return path


@dataclass(frozen=True)
class Manifest:
    """One generation of an index.

    Attributes:
        generation: Counts up with every published change.
        documents: How many there are.
        rows: How many vectors are on disk and belong to it.
        live: How many of them a document uses.
        dimension: Numbers a vector.
        dtype: `float32` or `float16`, of the stored vectors.
        store: Name of the database.
        vectors: Name of the file of vectors.
        kind: The index kind asked for.
        approximate: The file of the approximate index, if it has one.
        search: What was measured and chosen for it: its own kind, search width, recall.
        model: The model's fingerprint.
        reference: How to load the model: `name` and `settings`.
    """

    generation: int
    documents: int
    rows: int
    live: int
    dimension: int
    dtype: str
    store: str
    vectors: str
    kind: str
    approximate: StoredFile | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether there is an index in the folder."""
        return (folder / NAME).is_file()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The current generation.

        Raises:
            FileNotFoundError: There is no index.
            DamagedIndexError: The manifest is broken or of another format.
        """
        path = folder / NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no index in {folder}; make one with `ssmoe index CORPUS --output {folder}`."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            checksum, found = content.pop("checksum"), content.pop("format")
            if found != FORMAT:
                raise DamagedIndexError(
                    f"{path} has format {found} and this version reads format {FORMAT}; {RECOVERY}."
                )
            if checksum != _checksum(content):
                raise DamagedIndexError(f"{path} does not match its own checksum; {RECOVERY}.")
            stored = content.pop("approximate")
            return cls(approximate=StoredFile(**stored) if stored else None, **content)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DamagedIndexError(f"{path} is truncated or corrupted ({error}); {RECOVERY}.") from None

    def write(self, folder: Path) -> None:
        """Publish this generation."""
        content = asdict(self)
        content |= {"checksum": _checksum(content), "format": FORMAT}
        with atomic_file(folder / NAME) as file:
            file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
