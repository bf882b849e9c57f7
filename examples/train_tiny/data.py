"""Everything that training and evaluation read from the work folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from packing import Templates, TokenStore
from targets import fit_basis, project
from teacher import load_vectors


class Data:
    """Texts, prose, targets and held-out material of one work folder."""

    def __init__(self, work: Path) -> None:
        from transformers import AutoTokenizer

        self.start = work / "start.safetensors"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(work / "tokenizer")
        self.templates = Templates(self.tokenizer)
        self.texts, self.lower = TokenStore(work / "texts.npz"), TokenStore(work / "texts_lower.npz")
        self.prose = TokenStore(work / "passages.npz")
        self.held_texts, self.held_prose = (
            TokenStore(work / "heldout_texts.npz"),
            TokenStore(work / "heldout_passages.npz"),
        )
        vectors = load_vectors(work / "teacher" / "texts")
        given = work / "basis.npy"
        self.targets = project(vectors, np.load(given) if given.exists() else fit_basis(vectors, 256))
        self.texts.limit(len(self.targets))  # the teacher may still be at work on the rest
        self.partners = np.load(work / "partners.npy", allow_pickle=False)
        self.held_vectors = load_vectors(work / "teacher" / "heldout_texts").astype(np.float32)
        with (work / "heldout_pairs.jsonl").open(encoding="utf-8") as stream:
            pairs = [json.loads(line) for line in stream]
        self.pairs = [[self._tokens(pair[source]) for pair in pairs] for source in ("wordnet", "webster1913")]

    def _tokens(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.uint16)
