"""How many tokens a model reads of a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer


def count_tokens(model: SentenceTransformer, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, template and special tokens included, those cut off not.

    Args:
        model: Any sentence-transformers model for text.
        texts: `B` texts.
    """
    features = model.preprocess(list(texts))
    if "attention_mask" in features:
        # an ensemble of P prompts makes P rows a text
        return [int(count) for count in features["attention_mask"].sum(dim=1).reshape(len(texts), -1).sum(dim=1)]
    if "offsets" in features:  # bags of tokens, as static embeddings make them: where each text begins
        ends = torch.cat([features["offsets"][1:], torch.tensor([len(features["input_ids"])])])
        return [int(count) for count in ends - features["offsets"]]
    return [0] * len(texts)
