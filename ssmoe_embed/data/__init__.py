"""Data that ships with the package: calibration sample, search corpus, the bundled model's folder; and `Document`."""

import csv
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
"""A wheel is always unpacked by its installer, so the folder is a real one."""
BUNDLED = "ssmoe/tiny"
"""The name of the text model that comes with the package."""
BUNDLED_CLIP = "ssmoe/tiny-clip"
"""The name of the model of texts and images that comes with the package."""


@dataclass(frozen=True)
class Document:
    """One document of a corpus or an index.

    Attributes:
        id: Its unique name; adding another document of the same id replaces it.
        text: What is searched.
        metadata: JSON values to filter by. Under `image` a picture's `path` and `sha256`: such a document is encoded as that
            picture, and its text, words for it, is only searched by words.
        title: Stands before the text when it is encoded.
        source: Where it comes from, such as a file with its lines.

    Raises:
        ValueError: The id is empty, the text is blank, one of them is not a string, or the metadata are not JSON.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id={self.id!r} is no name for a document; give a string that is not empty.")
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"The document {self.id!r} has no text; leave it out.")
        for name in ("id", "text", "title", "source"):
            value = getattr(self, name)
            if value is not None:  # half of a surrogate pair cannot be stored
                object.__setattr__(self, name, str(value).encode("utf-8", "replace").decode())
        try:
            plain = json.dumps(dict(self.metadata), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
            object.__setattr__(self, "metadata", json.loads(plain))
        except (TypeError, ValueError) as error:
            raise ValueError(f"The metadata of document {self.id!r} are not JSON values ({error}).") from None

    @property
    def image(self) -> Path | None:
        """The picture that the document is; None for a text."""
        known = self.metadata.get("image")
        return Path(known["path"]) if isinstance(known, Mapping) and "path" in known else None

    @property
    def full_text(self) -> str:
        """Title and text together: what is encoded."""
        return f"{self.title}. {self.text}" if self.title else self.text

    @property
    def content(self) -> bytes:
        """A hash of what is encoded: documents alike in it share a vector."""
        encoded = self.full_text if self.image is None else f"\0image {self.metadata['image'].get('sha256')}"
        return hashlib.sha256(encoded.encode()).digest()


def read_records(name: str) -> Iterator[dict[str, Any]]:
    """Read one shipped JSON-lines file.

    Args:
        name: Path inside this folder, such as ``search/corpus.jsonl``.

    Yields:
        One dictionary a line, in the file's order.

    Raises:
        FileNotFoundError: If no such file ships with the package.
    """
    with (_FOLDER / name).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def paper_table(name: str) -> Iterator[dict[str, str]]:
    """The rows of one of the SSMoE paper's tables, as printed (https://arxiv.org/abs/2605.30992).

    Args:
        name: Name of a file in ``paper``, such as ``table2_mteb_averages.csv``.
    """
    with (_FOLDER / "paper" / name).open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines)


def calibration_texts() -> list[str]:
    """About 2,000 varied, openly licensed texts on which calibrations are fitted by default."""
    return [record["text"] for record in read_records("calibration.jsonl")]


def search_corpus() -> list[Document]:
    """The bundled corpus: short how-to answers, in a fixed order, with their `license` as metadata."""
    return [
        Document(one["id"], one["text"], {"license": one["license"]}, one["title"], one["source"])
        for one in read_records("search/corpus.jsonl")
    ]


def emoji_concepts() -> list[dict[str, Any]]:
    """Emoji with a drawing: `key`, `emoji`, `label`, `tags`, `group`, `subgroup`, `held_out` and the `styles` that ship."""
    return list(read_records("emoji/concepts.jsonl"))


def emoji_pictures(style: str) -> Iterator[tuple[str, bytes]]:
    """The drawings of one style, noto or twemoji, of 48 pixels: the key of each emoji with its WebP file."""
    with zipfile.ZipFile(_FOLDER / "emoji" / f"{style}.zip") as packed:
        for name in packed.namelist():
            yield name.removesuffix(".webp"), packed.read(name)


def search_folder() -> Path:
    """Folder of the bundled corpus, which holds the vectors of its documents by ``ssmoe/tiny`` too."""
    return _FOLDER / "search"


def bundled_folder(name: str) -> Path | None:
    """Folder of the bundled model of that name; None if there is none."""
    folders = {BUNDLED: "tiny", BUNDLED_CLIP: "tiny_clip"}
    return _FOLDER / folders[name] if name in folders else None


def tiny_folder() -> Path:
    """Folder of the bundled model ``ssmoe/tiny``."""
    return _FOLDER / "tiny"
