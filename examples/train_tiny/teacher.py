"""Embed the training texts with the teacher, in chunks that resume.

    python examples/train_tiny/teacher.py --teacher build/teacher --work build/tiny

The teacher is all-MiniLM-L6-v2: mean pooling over the tokens, then unit length. Texts are sorted by their number of
tokens and batched with others of exactly that number, so that nothing is padded: 3 to 4 times faster on a CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

CHUNK = 32_768
MAX_TOKENS = 256
"""What the teacher was made for: longer texts are cut."""
TOKENS_PER_BATCH = 6_144


class Teacher:
    """The sentence encoder whose vectors the student learns."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def encode(self, texts: list[str], progress: Any = None) -> np.ndarray:
        """Return unit vectors, `[texts, 384]` float16, in the order of the texts."""
        ids = self.tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        lengths = np.array([len(x) for x in ids])
        order = np.argsort(lengths, kind="stable")
        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float16)
        start = 0
        while start < len(order):
            length = lengths[order[start]]
            end = start + 1
            limit = start + max(1, TOKENS_PER_BATCH // int(length))
            while end < min(limit, len(order)) and lengths[order[end]] == length:
                end += 1
            rows = order[start:end]
            hidden = self.model(input_ids=torch.tensor([ids[i] for i in rows])).last_hidden_state  # [B,T,384]
            pooled = torch.nn.functional.normalize(hidden.float().mean(1), dim=-1)
            vectors[rows] = pooled.numpy().astype(np.float16)
            start = end
            if progress is not None:
                progress.update(len(rows))
        return vectors


def read_texts(path: Path) -> list[str]:
    """Read the texts of a JSON-lines file."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def encode_file(teacher: Teacher, source: Path, target: Path, shard: int = 0, shards: int = 1) -> None:
    """Embed every `shards`-th chunk of a file of texts into `target/00000.npy`, …; finished chunks are kept."""
    texts = read_texts(source)
    target.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(texts), desc=source.stem, unit="text", mininterval=5) as progress:
        for start in range(0, len(texts), CHUNK):
            path = target / f"{start // CHUNK:05d}.npy"
            if path.exists() or start // CHUNK % shards != shard:
                progress.update(min(CHUNK, len(texts) - start))
                continue
            vectors = teacher.encode(texts[start : start + CHUNK], progress)
            part = path.with_suffix(".part")
            with part.open("wb") as stream:
                np.save(stream, vectors, allow_pickle=False)
            part.replace(path)


def encode_pairs(teacher: Teacher, source: Path, target: Path) -> None:
    """Embed the pairs of definitions: first all of WordNet's, then all of Webster's."""
    with source.open(encoding="utf-8") as stream:
        pairs = [json.loads(line) for line in stream]
    target.mkdir(parents=True, exist_ok=True)
    vectors = teacher.encode([pair[side] for side in ("wordnet", "webster1913") for pair in pairs])
    np.save(target / "00000.npy", vectors, allow_pickle=False)


def load_vectors(folder: Path) -> np.ndarray:
    """Return all finished chunks, `[texts, 384]` float16."""
    return np.concatenate([np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npy"))])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Embed the training and held-out texts with the teacher.")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--work", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--shard", type=int, default=0, help="which part of the work this process does")
    parser.add_argument("--shards", type=int, default=1, help="number of processes that share the work")
    parser.add_argument("--threads", type=int, help="threads of this process")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    teacher = Teacher(options.teacher)
    if options.shard == 0:
        encode_pairs(teacher, options.work / "heldout_pairs.jsonl", options.work / "teacher" / "heldout_pairs")
    for name in ("heldout_texts", "texts"):
        encode_file(
            teacher, options.work / f"{name}.jsonl", options.work / "teacher" / name, options.shard, options.shards
        )


if __name__ == "__main__":
    main()
