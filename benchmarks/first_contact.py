"""What a question in one's own words finds in the bundled corpus: by meaning, by words, and by both.

    python benchmarks/first_contact.py [--model ssmoe/tiny | minilm] [--output benchmarks/results/first_contact.md]

The questions are in `questions.jsonl`: the fusion was chosen on the 48 for development, and the 24 held out were looked at
afterwards only, as were the questions of the offline task HowtoSearch, whose words are chosen to be unlike the answers'.
Those in `own_words.jsonl` were written when all this was fixed; they are for choosing a bundled model: 40, drawn by hash,
while it is trained, and 60 when it is finished. Reciprocal ranks (Cormack et al. 2009) of the same two rankings are
computed here, to compare with. Nonsense and questions about other subjects are asked too: `weak` is how many of the best
hits are called a weak match.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from measuring import Result, machine
from sentence_transformers import SentenceTransformer

import ssmoe_embed
from ssmoe_embed.data import read_records
from ssmoe_embed.search import Hit, SemanticIndex
from ssmoe_embed.search.corpora import bundled_index

RANK_SHIFT = 60
DEPTH = 100
NOTHING_THERE = (
    *("asdf qwer zxcv", "purple monkey dishwasher", "blorp fnord glibber", "xyzzy plugh", "the the the", "qqqq"),
    *("recipe for lasagna", "who won the world cup in 1998", "best restaurants in Paris", "symptoms of the flu"),
    *("how tall is mount everest", "cheap flights to new york", "my cat is sick", "lorem ipsum dolor sit amet"),
    *("colorless green ideas sleep furiously", "wie wird das Wetter morgen", "12345 67890", "tomorrow's weather"),
)


def questions() -> dict[str, list[dict[str, Any]]]:
    """The questions of each part, with the ids of the right documents."""
    files = [Path(__file__).with_name(name) for name in ("questions.jsonl", "own_words.jsonl")]
    own = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    parts = {name: [one for one in own if one["part"] == name] for name in dict.fromkeys(one["part"] for one in own)}
    return parts | {"HowtoSearch": list(read_records("offline/howto_search.jsonl"))}


def reciprocal(*rankings: Sequence[str]) -> list[str]:
    """The fused ranking by the sum of 1 / (60 + rank)."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + 1 / (RANK_SHIFT + rank)
    return sorted(scores, key=lambda name: -scores[name])


def rankings(index: SemanticIndex, asked: Sequence[str]) -> dict[str, list[list[str]]]:
    """For each way of searching the ids that each query finds, best first."""
    found = {mode: names(index.search_many(asked, DEPTH, mode=mode)) for mode in ("vectors", "words", "hybrid")}
    fused = [reciprocal(*both) for both in zip(found["vectors"], found["words"], strict=True)]
    return found | {"reciprocal ranks": fused}


def names(hits: list[list[Hit]]) -> list[list[str]]:
    """Their documents' ids."""
    return [[hit.document.id for hit in found] for found in hits]


def line(found: list[list[str]], asked: list[dict[str, Any]]) -> list[str]:
    """How many right documents are at rank 1, 3 and 10, and the mean reciprocal rank."""
    ranks = []
    for ids, one in zip(found, asked, strict=True):
        right = [rank for rank, name in enumerate(ids, start=1) if name in one["relevant"]]
        ranks.append(min(right, default=10**9))
    array = np.array(ranks)
    return [*(f"{(array <= depth).sum()}" for depth in (1, 3, 10)), f"{(1 / array).mean():.2f}"]


def load(name: str) -> SentenceTransformer:
    """A model of this package, or the baseline `minilm`."""
    if name != "minilm":
        return ssmoe_embed.load(name, progress=False)
    from ssmoe_embed.evaluation.baselines import minilm

    return cast("SentenceTransformer", minilm().model)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ssmoe/tiny")
    parser.add_argument("--output", type=Path, help="Markdown or JSON file to write")
    options = parser.parse_args()
    index = bundled_index(load(options.model))
    rows, data = [], {}
    for part, asked in questions().items():
        found = rankings(index, [one["query"] for one in asked])
        flags = index.search_many([one["query"] for one in asked], 1)
        weak = sum(hits[0].weak for hits in flags)
        for way, ids in found.items():
            cells = line(ids, asked)
            rows.append([f"{part}, {len(asked)}", way, *cells, f"{weak}" if way == "hybrid" else ""])
            data[f"{part}, {way}"] = cells
    weak = sum(hits[0].weak for hits in index.search_many(NOTHING_THERE, 1))
    rows.append([f"nothing there, {len(NOTHING_THERE)}", "hybrid", "", "", "", "", f"{weak}"])
    title = f"Questions to the bundled corpus, {options.model}"
    note = f"{machine('torch', 'sentence-transformers')}; {len(index):,} documents."
    header = ["questions", "compared by", "right at 1", "in 3", "in 10", "MRR", "weak"]
    Result(title, note, header, rows, data).show(options.output)


if __name__ == "__main__":
    main()
