"""Pictures as records: each file is a document, whose words are those of its name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from ssmoe_embed.search.reading.records import Moved, ReadOptions, Record

_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=\D)(?=\d)")


def read_picture(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """The one record of a picture, which is looked at now, so that a broken one is told of before anything is encoded.

    Raises:
        ImageError: It cannot be read.
    """
    from ssmoe_embed.vision.reading import read_image

    del options
    image = read_image(path)
    where = path.resolve().as_posix()
    metadata = {
        "path": path.as_posix(),
        "width": image.width,
        "height": image.height,
        "image": {"path": where, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    words = " ".join(part for part in _BETWEEN_WORDS.split(path.stem) if part)
    moved(path.stat().st_size)
    given = {"id": where, "title": path.name, "source": path.as_posix()}
    yield Record("", words or path.name, given, metadata)
