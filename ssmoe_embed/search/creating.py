"""The files of a new, empty index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmoe_embed.search.fingerprint import Fingerprint
from ssmoe_embed.search.kinds import IndexKind
from ssmoe_embed.search.locking import writing
from ssmoe_embed.search.manifest import Manifest
from ssmoe_embed.search.store_writing import WritableStore
from ssmoe_embed.search.vectors import VectorType


def create_files(
    folder: Path, kind: IndexKind, dtype: VectorType, fingerprint: Fingerprint, reference: Mapping[str, Any]
) -> None:
    """Make the first generation, which has no documents.

    Args:
        folder: Where; it may exist if there is no index in it.
        kind: How the nearest vectors will be looked for.
        dtype: How a number of a vector will be stored.
        fingerprint: The model's.
        reference: How the model was loaded.

    Raises:
        BusyIndexError: Somebody else is making one.
        FileExistsError: There is an index in the folder already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        if Manifest.exists(folder):
            raise FileExistsError(f"There is an index in {folder} already; open it, or choose another folder.")
        manifest = Manifest(
            generation=1,
            documents=0,
            rows=0,
            live=0,
            dimension=int(fingerprint["dimension"]),
            dtype=str(dtype),
            store="store-1.sqlite",
            vectors="vectors-1.bin",
            kind=str(kind),
            model=fingerprint,
            reference=dict(reference),
        )
        store = WritableStore(folder / manifest.store)
        store.publish(1, 0, 0)
        store.close()
        manifest.write(folder)
