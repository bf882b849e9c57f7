"""Data that ships with the package: the calibration sample, the search corpus, the bundled model's folder."""

import csv
import json
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from ssmoe_embed.data.documents import Document

__all__ = [
    "BUNDLED",
    "BUNDLED_CLIP",
    "Document",
    "bundled_folder",
    "calibration_texts",
    "emoji_concepts",
    "emoji_pictures",
    "paper_table",
    "read_records",
    "search_corpus",
    "search_folder",
    "tiny_folder",
]

BUNDLED = "ssmoe/tiny"
"""The name of the text model that comes with the package."""
BUNDLED_CLIP = "ssmoe/tiny-clip"
"""The name of the model of texts and images that comes with the package."""


def read_records(name: str) -> Iterator[dict[str, Any]]:
    """Read one shipped JSON-lines file.

    Args:
        name: Path inside this folder, such as ``search/corpus.jsonl``.

    Yields:
        One dictionary a line, in the file's order.

    Raises:
        FileNotFoundError: If no such file ships with the package.
    """
    with resources.files(__name__).joinpath(name).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def paper_table(name: str) -> Iterator[dict[str, str]]:
    """The rows of one of the SSMoE paper's tables, as printed (https://arxiv.org/abs/2605.30992).

    Args:
        name: Name of a file in ``paper``, such as ``table2_mteb_averages.csv``.
    """
    with resources.files(__name__).joinpath("paper", name).open(encoding="utf-8") as lines:
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
    with (
        resources.files(__name__).joinpath("emoji", f"{style}.zip").open("rb") as file,
        zipfile.ZipFile(file) as packed,
    ):
        for name in packed.namelist():
            yield name.removesuffix(".webp"), packed.read(name)


def search_folder() -> Path:
    """Folder of the bundled corpus, which holds the vectors of its documents by ``ssmoe/tiny`` too."""
    return Path(str(resources.files(__name__))) / "search"


def bundled_folder(name: str) -> Path | None:
    """Folder of the bundled model of that name; None if there is none."""
    folders = {BUNDLED: "tiny", BUNDLED_CLIP: "tiny_clip"}
    return Path(str(resources.files(__name__))) / folders[name] if name in folders else None


def tiny_folder() -> Path:
    """Folder of the bundled model ``ssmoe/tiny``.

    A wheel is always unpacked by its installer, so the folder is a real one.
    """
    return Path(str(resources.files(__name__))) / "tiny"
