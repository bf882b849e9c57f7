"""Tasks of lm-evaluation-harness that need no network; the harness finds the YAML files by `--include_path` too.

Their data, which the YAML files name, are made here from text that ships with the package. Both tasks are multiple choice
with four answers, so chance is 25 %. Everything is drawn with a seed of its own, so that they are the same everywhere.
"""

from __future__ import annotations

import random
from typing import Any

from ssmoe_embed.data import read_records

_CHOICES = 4
_TRAIN = 40
"""Examples kept for few-shot prompts."""
_TEST = 400
_SHORTEST = 16
"""Words of a text whose continuation is asked for."""
_WORDS = 8
"""Words of a continuation."""


def dictionary(**_unused: Any) -> dict[str, Any]:
    """Definition → word: the dictionary entries of the reverse-dictionary task, with other entries' words beside."""
    records = list(read_records("offline/reverse_dictionary.jsonl"))
    words = {record["id"]: record["document"] for record in records if "document" in record}
    draw = random.Random(0)
    examples = []
    for record in records:
        if "query" not in record or len(record["relevant"]) != 1:
            continue
        right = record["relevant"][0]
        wrong = draw.sample([word for entry, word in words.items() if entry != right], _CHOICES - 1)
        definition = record["query"].removeprefix("what do you call this: ")
        examples.append({"definition": definition} | _choices(words[right], wrong, draw))
    return _splits(examples, draw)


def continuation(**_unused: Any) -> dict[str, Any]:
    """Beginning of a review's sentence → how it goes on: the true next words, and those of three others."""
    draw = random.Random(1)
    texts = [record["text"].split() for record in read_records("offline/review_sentiment.jsonl")]
    texts = [words for words in texts if len(words) >= _SHORTEST]
    middles = [len(words) // 2 for words in texts]
    endings = [" ".join(words[at : at + _WORDS]) for words, at in zip(texts, middles, strict=True)]
    examples = []
    for index, (words, at) in enumerate(zip(texts, middles, strict=True)):
        others = draw.sample([place for place in range(len(texts)) if place != index], _CHOICES - 1)
        beginning = " ".join(words[max(0, at - 24) : at])
        examples.append({"beginning": beginning} | _choices(endings[index], [endings[one] for one in others], draw))
    return _splits(examples, draw)


def _choices(right: str, wrong: list[str], draw: random.Random) -> dict[str, Any]:
    """The answers in a drawn order, and the place of the right one."""
    choices = [right, *wrong]
    draw.shuffle(choices)
    return {"choices": choices, "gold": choices.index(right)}


def _splits(examples: list[dict[str, Any]], draw: random.Random) -> dict[str, Any]:
    """Few-shot examples and test examples, as the harness wants them."""
    from datasets import Dataset

    draw.shuffle(examples)
    parts = {"train": examples[:_TRAIN], "test": examples[_TRAIN : _TRAIN + _TEST]}
    return {name: Dataset.from_list(part) for name, part in parts.items()}
