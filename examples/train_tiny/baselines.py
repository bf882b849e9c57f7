"""What the trained model is compared with: TF-IDF, random weights, and count-based language models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from architecture import make_model
from packing import TokenStore
from tokenizer import EOS_ID


def with_eos(store: TokenStore) -> np.ndarray:
    """Return all tokens of a store, EOS after each text."""
    return np.insert(store.ids.astype(np.int64), store.offsets[1:], EOS_ID)


def count_perplexities(train: TokenStore, held: TokenStore, vocabulary: int) -> dict[str, float]:
    """Perplexity on held-out tokens of a unigram model and of a bigram model interpolated with it.

    The unigram counts get one added; the bigram weight is `n / (n + 5)` for a context seen `n` times (Witten-Bell's
    idea with a constant).
    """
    seen, asked = with_eos(train), with_eos(held)
    unigram = (np.bincount(seen, minlength=vocabulary) + 1.0) / (len(seen) + vocabulary)
    keys, counts = np.unique(seen[:-1] * vocabulary + seen[1:], return_counts=True)
    contexts = np.bincount(seen[:-1], minlength=vocabulary)
    previous, following = asked[:-1], asked[1:]
    wanted = previous * vocabulary + following
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    count = np.where(keys[place] == wanted, counts[place], 0)
    trust = contexts[previous] / (contexts[previous] + 5.0)
    bigram = trust * count / np.maximum(contexts[previous], 1) + (1 - trust) * unigram[following]
    return {
        "bigram": float(np.exp(-np.log(bigram).mean())),
        "unigram": float(np.exp(-np.log(unigram[following]).mean())),
    }


def tfidf_vectors(left: list[str], right: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return TF-IDF vectors of both sides, fitted on both."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(left + right)
    return fitted.transform(left).toarray(), fitted.transform(right).toarray()


def random_model(seed: int) -> Any:
    """Return the same architecture with random weights, routers included."""
    torch.manual_seed(seed)
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
    return model
