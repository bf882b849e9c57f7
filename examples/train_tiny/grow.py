"""Begin from an earlier checkpoint with a larger vocabulary: whole words for names that it cut to pieces.

    python examples/train_tiny/grow.py --start build/start --work build/tiny

The new merges follow the old ones, so that text without the new words keeps its tokens; a new token's embedding begins as
the mean of its pieces. Writes the tokenizer, `start.safetensors`, all token ids, and `basis.npy`: the rotation of the
teacher's vectors into the space that the earlier model's hidden states already share with it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any

import metrics
import numpy as np
import torch
from architecture import make_model
from fast_model import FastOlmoe
from packing import Templates
from safetensors.torch import save_model
from targets import align_basis
from teacher import load_vectors
from tokenizer import VOCABULARY, read_lines, write_all_ids

ALIGNED = 6_000
LEAST_COUNT = 12
"""Rarer words are not worth a token."""


def count_words(backend: Any, texts: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Return how often each word occurs that the tokenizer cuts, by its pieces."""
    counts: Counter[str] = Counter()
    for text in texts:
        for form in dict.fromkeys((text, text.lower())):
            counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(form))
    vocabulary = backend.get_vocab()
    cut = [word for word, count in counts.items() if count >= LEAST_COUNT and word not in vocabulary]
    pieces = [backend.model.tokenize(word) for word in cut]
    return {tuple(p.value for p in parts): counts[word] for word, parts in zip(cut, pieces, strict=True)}


def new_merges(words: dict[tuple[str, ...], int], known: set[str], count: int) -> list[tuple[str, str]]:
    """Continue byte-pair encoding: the `count` most frequent pairs, each after the ones before it were merged."""
    rows, counts = [list(pieces) for pieces in words], list(words.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)

    def add(index: int, sign: int) -> None:
        for pair in pairwise(rows[index]):
            pairs[pair] += sign * counts[index]
            where[pair].add(index)

    for index in range(len(rows)):
        add(index, 1)
    merges: list[tuple[str, str]] = []
    heap = [(-number, pair) for pair, number in pairs.items()]
    heapify(heap)
    while len(merges) < count:
        number, best = heappop(heap)
        if pairs[best] != -number:  # an outdated entry
            continue
        touched: set[tuple[str, str]] = set()
        for index in sorted(where.pop(best)):
            touched.update(pairwise(rows[index]))
            add(index, -1)
            rows[index] = _merge(rows[index], best)
            touched.update(pairwise(rows[index]))
            add(index, 1)
        pairs[best] = 0
        for pair in touched - {best}:
            if pairs[pair]:
                heappush(heap, (-pairs[pair], pair))
        if "".join(best) not in known:
            merges.append(best)
            known.add("".join(best))
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def grow_tokenizer(start: Path, texts: Iterable[str], target: Path) -> Any:
    """Write the tokenizer with more merges; returns it."""
    from transformers import AutoTokenizer

    old = AutoTokenizer.from_pretrained(start)
    old.save_pretrained(target)
    path = target / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["pre_tokenizer"]["add_prefix_space"] = True  # a text's first word gets the tokens of every other word
    old.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    vocabulary = data["model"]["vocab"]
    words = count_words(old.backend_tokenizer, texts)
    for left, right in new_merges(words, set(vocabulary), VOCABULARY - len(vocabulary)):
        vocabulary[left + right] = len(vocabulary)
        data["model"]["merges"].append([left, right])
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return AutoTokenizer.from_pretrained(target)


def grow_model(start: Path, tokenizer: Any) -> Any:
    """Return the earlier model with one embedding more for each new token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old, old_tokenizer = (
        AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        AutoTokenizer.from_pretrained(start),
    )
    model = make_model()
    state = old.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = state[name]
        tokens = tokenizer.convert_ids_to_tokens(range(len(rows), VOCABULARY))
        pieces = [old_tokenizer.backend_tokenizer.model.tokenize(token) for token in tokens]
        state[name] = torch.cat((rows, *(rows[[p.id for p in parts]].mean(0, keepdim=True) for parts in pieces)))
    model.load_state_dict(state)
    return model


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Begin ssmoe/tiny from an earlier checkpoint.")
    parser.add_argument("--start", type=Path, required=True, help="folder of the earlier language model")
    parser.add_argument("--work", type=Path, required=True, help="folder that corpus.py and teacher.py wrote")
    options = parser.parse_args()
    work: Path = options.work
    tokenizer = grow_tokenizer(options.start, read_lines(work / "texts.jsonl"), work / "tokenizer")
    write_all_ids(tokenizer, work)
    model = grow_model(options.start, tokenizer)
    save_model(model, str(work / "start.safetensors"))
    vectors = load_vectors(work / "teacher" / "texts")[:ALIGNED]
    texts = [text for text, _ in zip(read_lines(work / "texts.jsonl"), vectors, strict=False)]
    pieces = [np.array(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    mine = metrics.encode(FastOlmoe(model), Templates(tokenizer), pieces, 0)
    np.save(work / "basis.npy", align_basis(vectors.astype(np.float32), mine), allow_pickle=False)


if __name__ == "__main__":
    main()
