"""Baselines that count words: TF-IDF vectors, and BM25 for retrieval and reranking."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray

MOST_DIMENSIONS = 2**14
"""TF-IDF vectors with more terms than this are sketched."""


class TfidfEncoder(AbsEncoder):
    """TF-IDF vectors, fitted on the clean texts of the whole task that is evaluated, queries and test texts included.

    That is transductive, and more than an embedding model is given: no other text is needed to know which words are rare
    here. Terms that the task does not hold, such as a corruption's token, are ignored. Vectors of more than
    `MOST_DIMENSIONS` terms are sketched (each term is added to or subtracted from one of so many sums, as its digest says),
    which changes cosines by less than 0.01 (root mean square).
    """

    def __init__(self, meta: ModelMeta, **settings: Any) -> None:
        """Set up a baseline.

        Args:
            meta: Its record.
            **settings: For `sklearn.feature_extraction.text.TfidfVectorizer`.
        """
        self.mteb_model_meta = meta
        self._settings = settings
        self._fitted: tuple[str, Any, Any] | None = None

    def encode(self, inputs: Any, *, task_metadata: Any, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        del kwargs
        texts = [text for batch in inputs for text in batch["text"]]
        vectorizer, sketch = self._fit(task_metadata.name)
        return np.asarray((vectorizer.transform(texts) @ sketch).toarray(), dtype=np.float32)

    def _fit(self, task: str) -> tuple[Any, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if self._fitted is None or self._fitted[0] != task:
            vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **self._settings).fit(task_texts(task))
            self._fitted = (task, vectorizer, _sketch(list(vectorizer.get_feature_names_out())))
        return self._fitted[1:]


class BM25:
    """BM25 with English stop words and no stemming, for tasks of retrieval and reranking only."""

    def __init__(self, meta: ModelMeta) -> None:
        import bm25s

        self.mteb_model_meta = meta
        self._library = bm25s
        self._ids: list[str] = []
        self._index: Any = None

    def index(self, corpus: Any, **kwargs: Any) -> None:
        """See `mteb.models.SearchProtocol`."""
        del kwargs
        self._ids = list(corpus["id"])
        texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in corpus]
        self._index = self._library.BM25()
        self._index.index(self._library.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Mapping[str, list[str]] | None = None, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """See `mteb.models.SearchProtocol`."""
        del kwargs
        tokens = self._library.tokenize(list(queries["text"]), stopwords="en", return_ids=False, show_progress=False)
        found = {}
        for query, words in zip(queries["id"], tokens, strict=True):
            scores = dict(zip(self._ids, self._scores(words), strict=True))
            allowed = scores if not top_ranked else top_ranked[query]
            best = sorted(allowed, key=lambda document: (scores[document], document), reverse=True)[:top_k]
            found[query] = {document: float(scores[document]) for document in best}
        return found

    def _scores(self, words: list[str]) -> Any:
        """Scores of all documents, zero for a query without a known word."""
        known = [word for word in words if word in self._index.vocab_dict]
        return self._index.get_scores(known) if known else np.zeros(len(self._ids))


def task_texts(name: str) -> list[str]:
    """All texts of a task, of every subset and split, each once and in a fixed order.

    Args:
        name: A shipped task, one that was added, or one that mteb knows.
    """
    import mteb

    from ssmoe_embed.evaluation.tasks.offline import offline_task

    task = offline_task(name) or mteb.get_task(name)
    task.load_data()
    if hasattr(task, "convert_v1_dataset_format_to_v2"):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    return list(dict.fromkeys(_strings(task.dataset, getattr(task, "label_column_name", "label"))))


def _strings(data: Any, labels: str) -> Iterator[str]:
    """The texts in nested data sets: every column of strings, or of lists of strings, that is neither id nor label."""
    from datasets import Dataset

    if isinstance(data, Dataset):
        for column in data.column_names:
            if column not in {"id", "label", "labels", labels}:
                yield from _flat(data[column])
    elif isinstance(data, Mapping):
        for key, part in data.items():
            if key not in {"relevant_docs", "top_ranked"}:
                yield from _strings(part, labels)


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif not isinstance(value, Mapping) and hasattr(value, "__iter__"):
        for one in value:
            yield from _flat(one)


def _sketch(terms: list[str]) -> Any:
    """A sparse matrix, shape [terms, dimensions]: each term has one dimension and sign; few terms stay as they are."""
    from scipy import sparse

    if len(terms) <= MOST_DIMENSIONS:
        return sparse.identity(len(terms), dtype=np.float32, format="csr")
    digests = np.array([int.from_bytes(hashlib.blake2b(t.encode(), digest_size=4).digest(), "big") for t in terms])
    signs = np.where(digests % 2, 1, -1).astype(np.float32)
    columns = digests // 2 % MOST_DIMENSIONS
    return sparse.csr_matrix((signs, (np.arange(len(terms)), columns)), shape=(len(terms), MOST_DIMENSIONS))
