"""Corpora that are searched without an index of one's own: the bundled one, and files that are read every time.

Both become an index in the user's cache, so that they are searched, filtered and explained as any other, and only texts that
are new to it are encoded.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from platformdirs import user_cache_path

from ssmoe_embed.common.files import atomic_file, save_tensors
from ssmoe_embed.data import Document, emoji_concepts, emoji_pictures, search_corpus, search_folder
from ssmoe_embed.search.fingerprint import model_identity
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.manifest import DamagedIndexError, WrongModelError
from ssmoe_embed.search.reading.corpus import Corpus
from ssmoe_embed.search.vectors import Array

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED = "how-to answers of the package"
EMOJI = "emoji"
"""What the bundled corpus of pictures is called."""
_PROBE = "Which of these two models made the vectors?"
_TOLERANCE = 1e-4


def bundled_index(
    model: SentenceTransformer, *, cache: Path | None = None, batch_size: int = 32, progress: bool = True
) -> SemanticIndex:
    """The index of the bundled corpus by a model; that of `ssmoe/tiny` is made of vectors that come with the package.

    Args:
        model: Any sentence-transformers model, or a `BundledEncoder`.
        cache: Folder for indexes; by default in the user's cache.
        batch_size: Batch size.
        progress: Show a progress bar.
    """
    documents = search_corpus()

    def fill(index: SemanticIndex) -> None:
        if len(index) == len(documents):
            return
        vectors = _bundled_vectors(model, documents)
        if vectors is None:
            index.add(documents, batch_size=batch_size, progress=progress)
        else:
            index.add_vectors(documents, vectors)

    return _kept("bundled", _digest(documents), model, fill, cache)


def emoji_index(
    model: SentenceTransformer, *, cache: Path | None = None, batch_size: int = 32, progress: bool = True
) -> SemanticIndex:
    """The index of the bundled emoji: pictures with tags for a model that reads pictures, or else names and tags.

    The arguments are as for `bundled_index`; the pictures lie in the cache too.
    """
    pictures = _unpacked_emoji(cache) if "image" in model.modalities else {}
    known = [one for one in emoji_concepts() if not pictures or one["key"] in pictures]
    documents = []
    for one in known:
        metadata = {name: one[name] for name in ("emoji", "group", "subgroup")}
        if one["key"] in pictures:
            path, digest = pictures[one["key"]]
            metadata["image"] = {"path": str(path), "sha256": digest, "named": True}
        title = f"{one['emoji']} {one['label']}"
        text = ", ".join(one["tags"]) or one["label"]
        documents.append(Document(one["key"], text, metadata, title, "Noto Emoji"))

    def fill(index: SemanticIndex) -> None:
        if len(index) != len(documents):
            index.add(documents, batch_size=batch_size, progress=progress)

    return _kept(EMOJI, f"{_digest(documents)} named {len(pictures)}", model, fill, cache)


def _unpacked_emoji(cache: Path | None) -> dict[str, tuple[Path, str]]:
    """The bundled pictures as files with their hashes, by the emoji's key.

    They lie in the cache, or, where that cannot be written to, in a folder for now.
    """
    folder = (cache or user_cache_path("ssmoe_embed")) / EMOJI
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="ssmoe-emoji-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = {}
    for key, content in emoji_pictures("noto"):
        path = folder / f"{key}.webp"
        if not path.is_file() or path.stat().st_size != len(content):
            with atomic_file(path) as file:
                file.write(content)
        found[key] = (path, hashlib.sha256(content).hexdigest())
    return found


def corpus_index(
    model: SentenceTransformer,
    corpus: Corpus,
    *,
    cache: Path | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> SemanticIndex:
    """The index of a corpus of files, as `read_documents` gives it, as they are now; the rest is as for `bundled_index`.

    Raises:
        ValueError: A line of a file is broken, or there is no document.
    """

    def fill(index: SemanticIndex) -> None:
        index.add(corpus, batch_size=batch_size, progress=progress, prune=True)

    return _kept(corpus.paths[0].stem, corpus.identity, model, fill, cache)


def write_bundled_vectors(model: SentenceTransformer, folder: Path) -> Path:
    """Write the vectors of the bundled corpus, as they come with the package; returns the file."""
    import torch

    documents = search_corpus()
    texts = [document.full_text for document in documents]
    path = folder / _vectors_name(model, documents)
    vectors = model.encode_document(texts, show_progress_bar=False, convert_to_numpy=True)
    save_tensors(path, {"vectors": torch.from_numpy(vectors), "probe": torch.from_numpy(_probe(model))}, {})
    return path


def _kept(
    name: str, corpus: str, model: SentenceTransformer, fill: Callable[[SemanticIndex], None], cache: Path | None
) -> SemanticIndex:
    """An index in the cache, made if it is not there, and filled; where the cache cannot be written to, one for now."""
    from filelock import FileLock

    key = json.dumps([corpus, model_identity(model)], sort_keys=True)
    folder = (cache or user_cache_path("ssmoe_embed")) / "search"
    called = BUNDLED if name == "bundled" else name
    folder /= f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    except OSError:
        temporary = Path(tempfile.mkdtemp(prefix="ssmoe-search-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        index = SemanticIndex.create(temporary / folder.name, model, reference={"corpus": called})
        fill(index)
        return index
    try:
        try:
            index = SemanticIndex.open(folder, model)
        except (FileNotFoundError, DamagedIndexError, WrongModelError):
            shutil.rmtree(folder, ignore_errors=True)
            index = SemanticIndex.create(folder, model, reference={"corpus": called})
        fill(index)
        return index
    finally:
        lock.release()


def _bundled_vectors(model: SentenceTransformer, documents: Iterable[Document]) -> Array | None:
    """The vectors `[N,D]` that come with the package, if this model made them."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(search_folder() / _vectors_name(model, documents))
    except (OSError, SafetensorError):
        return None
    probe = _probe(model)
    same = tensors["probe"].shape == probe.shape and np.allclose(tensors["probe"], probe, atol=_TOLERANCE)
    return tensors["vectors"] if same else None


def _vectors_name(model: SentenceTransformer, documents: Iterable[Document]) -> str:
    return f"{_digest(documents)}-{model.get_embedding_dimension()}.safetensors"


def _digest(documents: Iterable[Document]) -> str:
    texts = "\0".join(document.full_text for document in documents)
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def _probe(model: SentenceTransformer) -> Array:
    """A vector `[D]` that tells one model and its settings from others."""
    return np.asarray(model.encode_document([_PROBE], show_progress_bar=False, convert_to_numpy=True)[0])
