"""What is said: texts of the concepts, and the broad texts on which the text tower learns words that no emoji has.

python examples/train_tiny_clip/texts.py --root build/root --teacher build/teacher --work build/clip

The teacher is all-MiniLM-L6-v2. Its 384 dimensions are reduced to 192 by an uncentred SVD of the broad texts' vectors.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(1, str(Path(__file__).parents[1] / "train_tiny"))

from dictionaries import read_wordnet
from questions import everyday_sentences

DIMENSIONS = 192
"""Of the shared space."""
SEED = 20261127
DEFINITIONS = 6_000
"""Of WordNet's definitions and examples, how many are taken."""
MEANT = ("{}", "{}", "a picture of {}", "an emoji of {}", "{} emoji", "an icon that shows {}", "a drawing of {}")
FELT = (
    "I am so {}", "I feel {}", "she is very {}", "why am I so {}", "{} today", "he looks {}", "don't be {}",
    "this makes me {}", "that is {}!", "I was {} all day", "we are {}", "so {}",
)  # fmt: skip
THINGS = (
    "let's get {}", "I love {}", "look at the {}", "where is my {}", "a {}", "the {}", "I want {}", "time for {}",
    "photo of a {}", "there was a {} outside", "no more {}", "my new {}", "two {}", "a red {}", "a small {}",
)  # fmt: skip
DONE = ("let's {}", "I like to {}", "someone who likes to {}", "time to {}", "I have to {}", "they {} together")


def concept_texts(concept: dict[str, Any]) -> list[str]:
    """Everything that is said of one concept: its name in templates, its tags, its tags as a sentence."""
    label, tags = concept["label"], concept["tags"]
    named = [form.format(label) for form in MEANT]
    told = [", ".join(tags), " ".join(tags), f"{label}: {', '.join(tags)}"] if tags else []
    return [*dict.fromkeys([*named, *told, *tags])]


def broad_texts(root: Path, forbidden: set[str]) -> list[str]:
    """Words, definitions and examples of WordNet, words put into sentences, and everyday sentences.

    Args:
        root: Where Debian's `wordnet-base` was unpacked.
        forbidden: Texts to leave out, in lower case: those of held-out concepts.
    """
    rng = random.Random(SEED)
    texts: dict[str, None] = {}
    for part, ways in {"adj": FELT, "noun": THINGS, "verb": DONE}.items():
        for word in frequent_words(root, part):
            texts.update(dict.fromkeys([word, *(way.format(word) for way in rng.sample(ways, 1))]))
    texts.update(dict.fromkeys(everyday_sentences(SEED, 2_000)))
    entries = list(read_wordnet(root))
    explained = [text for entry in entries for text in (entry.gloss, *entry.examples) if 0 < len(text) <= 100]
    texts.update(dict.fromkeys(rng.sample(explained, min(DEFINITIONS, len(explained)))))
    return [text for text in texts if text.lower() not in forbidden]


def frequent_words(root: Path, part: str) -> list[str]:
    """The words of one part of speech that WordNet's tagged texts have, most frequent first."""
    kinds = {"noun": "1", "verb": "2", "adj": "35"}[part]
    words: dict[str, None] = {}
    with (root / "usr/share/wordnet/cntlist.rev").open(encoding="utf-8") as lines:
        counted = [line.split() for line in lines]
    for sense, _, count in sorted(counted, key=lambda fields: -int(fields[2])):
        word, _, rest = sense.partition("%")
        if rest[0] in kinds and int(count) > 1:
            words[word.replace("_", " ")] = None
    return list(words)


def embed(texts: list[str], teacher: Any, store: Path, chunk: int = 4_096) -> np.ndarray:
    """The teacher's vectors `[n,384]`, in finished chunks that are kept."""
    store.mkdir(parents=True, exist_ok=True)
    found = []
    for start in tqdm(range(0, len(texts), chunk), desc=store.name):
        path = store / f"{start}.npy"
        if not path.exists():
            vectors = teacher.encode(texts[start : start + chunk], batch_size=256, normalize_embeddings=True)
            np.save(path.with_suffix(".part.npy"), vectors.astype(np.float16))
            path.with_suffix(".part.npy").replace(path)
        found.append(np.load(path).astype(np.float32))
    return np.concatenate(found)


def main() -> None:
    """Run from the command line."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Write all texts and the teacher's vectors of them.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    concepts = json.loads((options.work / "pictures.json").read_text(encoding="utf-8"))["concepts"]
    said = [concept_texts(one) for one in concepts]
    forbidden = {
        text.lower() for one, texts in zip(concepts, said, strict=True) if one["held_out"] for text in texts
    } - {tag.lower() for one in concepts if not one["held_out"] for tag in (*one["tags"], one["label"])}
    broad = broad_texts(options.root, forbidden)
    teacher: Any = SentenceTransformer(str(options.teacher), device="cpu", model_kwargs={"dtype": "bfloat16"})
    meant = [f"{one['label']}: {', '.join(one['tags'])}" for one in concepts]
    vectors, own = embed(broad, teacher, options.work / "broad"), embed(meant, teacher, options.work / "meant")
    basis = np.linalg.svd(vectors.T @ vectors)[0][:, :DIMENSIONS]  # [384,192]
    for name, made in (("broad", vectors @ basis), ("meant", own @ basis)):
        np.save(options.work / f"{name}.npy", (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16))
    (options.work / "texts.json").write_text(json.dumps({"broad": broad, "said": said}), encoding="utf-8")
    kept = np.linalg.norm(vectors[:5000] @ basis, axis=1).mean()
    print(f"{len(broad)} broad texts, {len(meant)} concepts; {kept:.3f} of a vector's length is kept")


if __name__ == "__main__":
    main()
