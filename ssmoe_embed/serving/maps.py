"""The map of a corpus: made once in the background, kept on disk, shown as columns of JSON."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.common.files import load_tensors, save_tensors
from ssmoe_embed.data import Document
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.serving.batching import unit

_SEED = 0
_COMPONENTS = 50
"""Dimensions kept of each vector before t-SNE, by principal components: less noise, and many times faster."""
_FEWEST = 5
"""With fewer points neighbourhoods mean nothing, and principal components are drawn."""


class MapMethod(Choice):
    """How vectors are laid on a plane."""

    UMAP = "umap"
    """UMAP, https://arxiv.org/abs/1802.03426; needs umap-learn."""
    TSNE = "tsne"
    """t-SNE, https://jmlr.org/papers/v9/vandermaaten08a.html"""
    PCA = "pca"
    """The first two principal components."""

    @classmethod
    def best(cls) -> MapMethod:
        """UMAP where it is installed, else t-SNE."""
        return cls.UMAP if find_spec("umap") else cls.TSNE


def project(vectors: np.ndarray[Any, Any], method: MapMethod) -> np.ndarray[Any, Any]:
    """Points on a plane, in `[-1, 1]`, near each other where the vectors point in like directions.

    The same vectors `[n,D]` give the same points, float32 `[n,2]`, by a fixed seed.
    """
    rows = _unit(vectors)  # [n,D]
    if len(rows) < 2 or not np.ptp(rows, axis=0).any():  # one text, however often
        return np.zeros((len(rows), 2), dtype=np.float32)
    few = len(rows) < _FEWEST
    points = _pca(rows, 2) if few or method is MapMethod.PCA else _neighbours(rows, method)
    points = points - (points.min(axis=0) + points.max(axis=0)) / 2
    return (points / np.maximum(np.abs(points).max(axis=0), 1e-12)).astype(np.float32)


def _neighbours(rows: np.ndarray[Any, Any], method: MapMethod) -> np.ndarray[Any, Any]:
    """Points `[n,2]` that keep neighbourhoods."""
    if method is MapMethod.UMAP:
        from umap import UMAP

        neighbours = min(15, len(rows) - 1)
        return UMAP(n_neighbors=neighbours, metric="cosine", random_state=_SEED, n_jobs=1).fit_transform(rows)
    from sklearn.manifold import TSNE

    reduced = _pca(rows, _COMPONENTS)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # one thread: sums in another order would move the points from run to run
    return TSNE(perplexity=perplexity, init="pca", random_state=_SEED, n_jobs=1).fit_transform(reduced)


def _pca(rows: np.ndarray[Any, Any], components: int) -> np.ndarray[Any, Any]:
    """The first principal components `[n,components]`, or as many as there are, but at least two columns."""
    from sklearn.decomposition import PCA

    most = min(components, *rows.shape)
    found = PCA(most, svd_solver="full" if most <= 2 else "auto", random_state=_SEED).fit_transform(rows)
    return np.pad(found, ((0, 0), (0, max(0, 2 - most))))


def group(vectors: np.ndarray[Any, Any], texts: Sequence[str], most: int = 8) -> tuple[np.ndarray[Any, Any], list[str]]:
    """At most so many groups of vectors `[n,D]`, each named by words that tell its texts from the others'.

    Returns:
        int64 `[n]`, the group of each vector, and the groups' names.
    """
    from sklearn.cluster import KMeans

    rows = _unit(vectors)
    count = min(most, len(np.unique(rows, axis=0)), max(1, len(rows) // 4))
    if count < 2:
        return np.zeros(len(rows), dtype=np.int64), ["all documents"]
    groups = KMeans(count, random_state=_SEED, n_init=4).fit_predict(rows).astype(np.int64)
    return groups, _names(groups, texts, count)


def _names(groups: np.ndarray[Any, Any], texts: Sequence[str], count: int) -> list[str]:
    """Three words for each group: those with the largest mean TF-IDF in it beyond that in all texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b", max_features=20_000)
    try:
        table = words.fit_transform(texts)
    except ValueError:  # no words at all, as in numbers or symbols
        return [f"group {number + 1}" for number in range(count)]
    names = words.get_feature_names_out()
    overall = np.asarray(table.mean(axis=0)).ravel()
    result = []
    for number in range(count):
        inside = np.asarray(table[groups == number].mean(axis=0)).ravel() - overall
        best = [str(names[column]) for column in np.argsort(-inside, kind="stable")[:3] if inside[column] > 0]
        result.append(" · ".join(best) or f"group {number + 1}")
    return result


_VERSION = "1"
"""Raise it when the same corpus would give another map."""
_RUN = 100
"""Documents next to each other in a sample: finding a place in a large database takes longer than reading on from it."""
_RUNS = 50
"""Places, at least, that a sample is taken from."""
_NEAREST = 5
"""Documents of the map between which a document that is not on it is placed."""


@dataclass(frozen=True)
class CorpusMap:
    """Documents as points.

    Attributes:
        documents: The `n` documents on the map.
        vectors: Their vectors `[n,D]`.
        points: float32 `[n,2]`, in `[-1, 1]`.
        groups: int64 `[n]`, the group of each.
        names: The groups' names.
        method: How the points were found.
    """

    documents: Sequence[Document]
    vectors: np.ndarray[Any, Any]
    points: np.ndarray[Any, Any]
    groups: np.ndarray[Any, Any]
    names: Sequence[str]
    method: MapMethod

    def as_dict(self) -> dict[str, Any]:
        """The map as JSON, a column a field; `colors` are the fields by which points may be coloured."""
        return {
            "method": str(self.method),
            "ids": [one.id for one in self.documents],
            "titles": [one.title or one.text[:80] for one in self.documents],
            "x": [round(float(x), 4) for x in self.points[:, 0]],
            "y": [round(float(y), 4) for y in self.points[:, 1]],
            "colors": {"topic": _column([self.names[number] for number in self.groups])} | _fields(self.documents),
        }

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {one.id: row for row, one in enumerate(self.documents)}

    def point(self, name: str) -> list[float] | None:
        """Where the document of that id is, if it is on the map."""
        row = self._rows.get(name)
        return None if row is None else [float(value) for value in self.points[row]]

    def place(self, vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Where documents that are not on the map would be, `[m,2]` of `[m,D]`: between the nearest of those that are."""
        likeness = _unit(vectors) @ _unit(self.vectors).T  # [m,n]
        nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :_NEAREST]  # [m,k]
        weights = np.clip(np.take_along_axis(likeness, nearest, axis=1), 1e-6, None) ** 8
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("mk,mkd->md", weights, self.points[nearest])  # [m,k] · [m,k,2] → [m,2]


class MapMaker:
    """Makes the map of a corpus in a thread of its own, which never touches the model."""

    def __init__(self, index: SemanticIndex, *, most: int = 5000) -> None:
        """Bind an index; nothing runs before `start`. At most `most` documents are laid out, by `MapMethod.best`."""
        self._index = index
        self._most = most
        self._method = MapMethod.best()
        self._thread: threading.Thread | None = None
        self.made: CorpusMap | None = None
        self.error: str | None = None

    @property
    def state(self) -> str:
        """How far it is: computing, ready or failed."""
        if self.error is not None:
            return "failed"
        return "ready" if self.made is not None else "computing"

    def start(self) -> None:
        """Begin to make the map."""
        self._thread = threading.Thread(target=self._run, name="ssmoe-map", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the map is made or has failed."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self.made = self._make()
        except Exception as error:  # whatever it is, searching goes on; the page shows it
            self.error = f"{type(error).__name__}: {error}"

    def _make(self) -> CorpusMap:
        """The map kept on disk, if it is of these very documents; else a new one, which is kept."""
        documents, vectors, state = sample_of(self._index, self._most)
        key = _digest([_VERSION, str(self._method), str(self._most), state])
        path = self._index.folder / "map.safetensors"
        kept = _read(path, key, len(documents))
        if kept is None:
            groups, names = group(vectors, [f"{one.title or ''} {one.text}" for one in documents])
            kept = project(vectors, self._method), groups, names
            tensors = {"points": torch.from_numpy(kept[0]), "groups": torch.from_numpy(groups)}
            with suppress(OSError):  # where it may not be written it is made again the next time
                save_tensors(path, tensors, {"key": key, "names": names})
        return CorpusMap(documents, vectors, *kept, self._method)


def sample_of(index: SemanticIndex, most: int) -> tuple[list[Document], np.ndarray[Any, Any], str]:
    """Some documents of an index, evenly spread, as they are at one moment.

    Returns:
        At most `most` documents, their vectors `[n,D]`, and a text that is another one when the index has changed.
    """
    now = SemanticIndex.open(index.folder)  # one of its own, which no search takes on to a newer generation
    if len(now) <= most:
        documents = now.documents()
    else:
        run = min(_RUN, max(1, most // _RUNS))
        starts = np.linspace(0, len(now) - run, most // run).astype(int).tolist()
        # by id, since runs may overlap
        documents = list({one.id: one for start in starts for one in now.documents(start, run)}.values())
    info = now.info()
    state = _digest([str(info[name]) for name in ("generation", "documents", "rows", "model")])
    return documents, now.vectors([one.id for one in documents]), state


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path, key: str, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]] | None:
    """Points, groups and names kept on disk, if they are those of this key."""
    try:
        tensors, metadata = load_tensors(path)
    except (OSError, ValueError):
        return None
    if metadata.get("key") != key or len(tensors["points"]) != count:
        return None
    return tensors["points"].numpy(), tensors["groups"].numpy(), metadata["names"]


def _fields(documents: Sequence[Document], most: int = 12) -> dict[str, Any]:
    """Columns of the metadata with few values: at least two, and at most so many."""
    columns = {"source": [one.source or "" for one in documents]}
    for name in sorted({name for one in documents for name in one.metadata}):
        columns[name] = [str(one.metadata.get(name, "")) for one in documents]
    return {name: _column(values) for name, values in columns.items() if 2 <= len(set(values)) <= most}


def _column(values: Sequence[str]) -> dict[str, Any]:
    """Values as a list of names, the most frequent first, and a number for each document."""
    names = sorted(set(values), key=lambda name: (-values.count(name), name))
    numbers = {name: number for number, name in enumerate(names)}
    return {"names": names, "values": [numbers[value] for value in values]}


def _unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Vectors `[n,D]` as float32 of length 1."""
    return unit(np.asarray(vectors, dtype=np.float32))
