"""Everything that training and evaluation read from the work folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from packing import TEMPLATES, Templates, Texts, TokenStore, form
from targets import fit_basis, project
from teacher import load_vectors
from tokenizer import inside_quotes


class Data:
    """Texts, prose, targets and held-out material of one work folder."""

    def __init__(self, work: Path) -> None:
        from transformers import AutoTokenizer

        self.start = work / "start.safetensors"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(work / "tokenizer")
        self.templates = Templates(self.tokenizer)
        self.texts = Texts(*(TokenStore(work / f"texts{form}.npz") for form in ("", "_lower", "_quoted")))
        self.prose = TokenStore(work / "passages.npz")
        self.held_texts, self._held_quoted, self.held_prose = (
            TokenStore(work / f"heldout_{name}.npz") for name in ("texts", "texts_quoted", "passages")
        )
        vectors = load_vectors(work / "teacher" / "texts")
        given = work / "basis.npy"
        self.targets = project(vectors, np.load(given) if given.exists() else fit_basis(vectors, 256))
        self.texts.limit(len(self.targets))  # the teacher may still be at work on the rest
        self.partners = np.load(work / "partners.npy", allow_pickle=False)
        self.held_vectors = load_vectors(work / "teacher" / "heldout_texts").astype(np.float32)
        with (work / "heldout_pairs.jsonl").open(encoding="utf-8") as stream:
            pairs = [json.loads(line) for line in stream]
        self.pairs = [[pair[source] for pair in pairs] for source in ("wordnet", "webster1913")]

    def held(self, rows: np.ndarray, template: int) -> list[np.ndarray]:
        """Return the ids of some held-out texts as they stand in a template."""
        store = form(self.held_texts, self._held_quoted, template)
        return [store.text(int(row)) for row in rows]

    def sides(self, template: int) -> list[list[np.ndarray]]:
        """Return the ids of the pairs of definitions, WordNet's and Webster's, as they stand in a template."""
        tokenizer = inside_quotes(self.tokenizer) if TEMPLATES[template] == "prompteol" else self.tokenizer
        return [
            [np.array(ids, np.uint16) for ids in tokenizer(side, add_special_tokens=False)["input_ids"]]
            for side in self.pairs
        ]
