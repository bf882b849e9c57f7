"""Find texts that mean much the same, for the contrastive part of the training.

Definitions of one word in two dictionaries, a task and its solution, a paragraph and its keywords.

    python examples/train_tiny/pairs.py --root build/root --work build/tiny

A word has many senses; a WordNet gloss is paired with the Webster definition of one of its words that the teacher finds
most similar, if it finds it similar enough. Held-out words have no texts here, so they have no pairs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from dictionaries import read_webster, read_wordnet
from teacher import load_vectors

LEAST_COSINE = 0.4
NOBODY = -1


def candidates(root: Path, numbers: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all WordNet and Webster texts that define one word, side by side."""
    webster: dict[str, list[int]] = defaultdict(list)
    for entry in read_webster(root):
        if entry.gloss in numbers:
            webster[entry.words[0]].append(numbers[entry.gloss])
    found = {
        (numbers[entry.gloss], other)
        for entry in read_wordnet(root)
        if entry.gloss in numbers
        for word in entry.words
        for other in webster.get(word.lower(), ())
    }
    pairs = np.array(sorted(found), np.int64)
    return pairs[:, 0], pairs[:, 1]


def choose_partners(left: np.ndarray, right: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Give each text the most similar of its candidates: `[texts]`, `NOBODY` where none is similar enough."""
    cosines = np.concatenate(
        [
            np.einsum("nd,nd->n", vectors[left[i : i + 8192]].astype(np.float32), vectors[right[i : i + 8192]])
            for i in range(0, len(left), 8192)
        ]
    )
    partners = np.full(len(vectors), NOBODY, np.int64)
    for index in np.argsort(cosines, kind="stable"):  # the most similar last, so that it stays
        if cosines[index] >= LEAST_COSINE:
            partners[left[index]], partners[right[index]] = right[index], left[index]
    return partners


def named_pairs(rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the texts that share the name of a pair."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row["pair"]:
            found[row["pair"]].append(number)
    pairs = np.array([numbers[:2] for numbers in found.values() if len(numbers) > 1], np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Pair the definitions of one word from two dictionaries.")
    parser.add_argument("--root", type=Path, required=True, help="folder in which the Debian packages were unpacked")
    parser.add_argument("--work", type=Path, required=True, help="folder that corpus.py and teacher.py wrote")
    options = parser.parse_args()
    vectors = load_vectors(options.work / "teacher" / "texts")
    with (options.work / "texts.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream][: len(vectors)]
    numbers = {row["text"]: number for number, row in enumerate(rows) if row["kind"] == "gloss"}
    both = candidates(options.root, numbers), named_pairs(rows)
    left, right = (np.concatenate(sides) for sides in zip(*both, strict=True))
    partners = choose_partners(left, right, vectors)
    np.save(options.work / "partners.npy", partners, allow_pickle=False)
    print(f"{len(left)} candidates, {int((partners != NOBODY).sum())} texts with a partner")


if __name__ == "__main__":
    main()
