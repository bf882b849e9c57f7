"""Models, documents and plain recomputation for the tests of the semantic index."""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny import make_tokenizer

from ssmoe_embed.search import Document


def static_model(seed=0):
    """A real and very fast sentence-transformers model that is not of this package."""
    tokenizer = make_tokenizer()
    weights = torch.randn(len(tokenizer), 24, generator=torch.Generator().manual_seed(seed))
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=weights.numpy())]
    )


def varied(texts):
    """Texts as documents, some with a title, with metadata to filter by."""
    return [
        Document(f"d{i}", text, {"parity": i % 2, "tags": ["all", f"t{i % 3}"]}, f"title {i}" if i % 4 == 0 else None)
        for i, text in enumerate(texts)
    ]


def vectors(documents):
    """Any vectors, the same for the same text."""
    rng = [np.random.default_rng(list(document.full_text.encode())) for document in documents]
    return np.stack([generator.standard_normal(24) for generator in rng])


def cosines(model, documents, query):
    """Documents' cosines to a query, computed without the index."""
    vectors = model.encode(
        [f"{d.title}. {d.text}" if d.title else d.text for d in documents], normalize_embeddings=True
    )
    return vectors.astype(np.float64) @ model.encode(query, normalize_embeddings=True).astype(np.float64)


def best(model, documents, query, top):
    scores = cosines(model, documents, query)
    return [documents[i].id for i in np.argsort(-scores, kind="stable")[:top]]


def ids(hits):
    return [hit.document.id for hit in hits]
