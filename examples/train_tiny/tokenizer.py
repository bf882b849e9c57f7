"""Train the byte-level BPE tokenizer and write all texts as token ids.

python examples/train_tiny/tokenizer.py --work build/tiny
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 12_288
EOS, PAD = "<|endoftext|>", "<|padding|>"
EOS_ID, PAD_ID = 0, 1
MAX_LENGTH = 2_048


def read_lines(path: Path) -> Iterator[str]:
    """Yield the texts of a JSON-lines file."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)["text"]


def train_tokenizer(texts: Iterator[str], vocabulary: int = VOCABULARY) -> Any:
    """Train a tokenizer that adds no token by itself, loses no byte, and has one token for a word wherever it stands.

    Without the space that it puts before a text, a text's first word, and so every single word, has other tokens than the
    same word inside a sentence: mostly pieces, for few texts begin with it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        bos_token=EOS,
        unk_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def write_ids(tokenizer: Any, texts: Iterable[str], target: Path) -> int:
    """Store the token ids of texts as `ids` (flat, uint16) and `offsets`; returns the number of tokens."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    rows = [e.ids for e in encoded]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter((i for row in rows for i in row), np.uint16, count=int(offsets[-1]))
    np.savez(target, ids=ids, offsets=offsets)
    return len(ids)


def inside_quotes(tokenizer: Any) -> Any:
    """Return the tokenizer without the space before a text: what comes after a quotation mark has none."""
    inside = copy.deepcopy(tokenizer)
    inside.backend_tokenizer.pre_tokenizer.add_prefix_space = False
    return inside


def write_all_ids(tokenizer: Any, work: Path) -> None:
    """Store the token ids of all files, of texts inside quotation marks, and in lower case, as questions are typed."""
    quoted = inside_quotes(tokenizer)
    for name in ("texts", "passages", "heldout_texts", "heldout_passages"):
        count = write_ids(tokenizer, read_lines(work / f"{name}.jsonl"), work / f"{name}.npz")
        print(f"{count:10d} tokens in {name}")
        if name.endswith("texts"):
            write_ids(quoted, read_lines(work / f"{name}.jsonl"), work / f"{name}_quoted.npz")
    lower = (text.lower() for text in read_lines(work / "texts.jsonl"))
    print(f"{write_ids(tokenizer, lower, work / 'texts_lower.npz'):10d} tokens in texts_lower")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train the tokenizer of ssmoe/tiny.")
    parser.add_argument("--work", type=Path, required=True, help="folder that corpus.py wrote")
    work: Path = parser.parse_args().work

    def everything() -> Iterator[str]:
        for name in ("texts", "passages"):
            yield from read_lines(work / f"{name}.jsonl")

    tokenizer = train_tokenizer(everything())
    tokenizer.save_pretrained(work / "tokenizer")
    write_all_ids(tokenizer, work)


if __name__ == "__main__":
    main()
