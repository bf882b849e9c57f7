"""Reading an index from end to end and comparing it with its checksums."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from ssmoe_embed.search.manifest import Manifest, file_hash
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.vectors import map_rows


def verify(folder: Path, manifest: Manifest, store: Store) -> list[str]:
    """What is wrong with the files of a generation, in words; nothing if all is well."""
    wrong = [f"{store.path.name}: {problem}" for problem in store.problems()]
    count = store.count(manifest.generation)
    if count != manifest.documents:
        wrong.append(f"{store.path.name} has {count} documents and the manifest says {manifest.documents}.")
    vectors = map_rows(folder / manifest.vectors, manifest.rows, manifest.dimension, manifest.dtype)
    covered = 0
    for first, rows, crc in store.chunks():
        if first >= manifest.rows:
            break  # of an interrupted writer
        if zlib.crc32(np.ascontiguousarray(vectors[first : first + rows]).tobytes()) != crc:
            wrong.append(f"{manifest.vectors}: rows {first} to {first + rows - 1} do not match their checksum.")
        covered += rows
    if covered != manifest.rows:
        wrong.append(f"{store.path.name} knows of {covered} vectors and the manifest says {manifest.rows}.")
    stored = manifest.approximate
    if stored is not None and file_hash(stored.check(folder)) != stored.sha256:
        wrong.append(f"{stored.name} does not match its checksum; make it anew with `ssmoe index --rebuild`.")
    return wrong
