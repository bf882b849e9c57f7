"""Plain text as windows of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

SHORTEST_CALIBRATION = 512
"""Tokens: fewer say little about any expert."""
_LONGEST_TOKEN = 64
"""Characters of text per token that are kept before it is tokenized: much more than any text has on average."""


def read_text(path: str | Path) -> str:
    """The content of a text file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {path}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); convert it first.") from None


def text_digest(path: str | Path) -> str:
    """A short name of a text file's content, 16 hexadecimal digits; raises as `read_text` does."""
    return sha256(read_text(path).encode()).hexdigest()[:16]


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """All tokens of a text `[T]`, with those that the tokenizer puts before and after a text."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def calibration_ids(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> torch.Tensor:
    """The first tokens `[T]` of a calibration text.

    Args:
        tokenizer: The model's.
        text: The text.
        limit: The most tokens.

    Raises:
        ValueError: They are too few.
    """
    if limit < SHORTEST_CALIBRATION:
        raise ValueError(
            f"calibration_tokens={limit} are too few to tell used experts from unused ones; at least "
            f"{SHORTEST_CALIBRATION} are needed, and tens of thousands are better."
        )
    ids = token_ids(tokenizer, text[: limit * _LONGEST_TOKEN])[:limit]
    if len(ids) < SHORTEST_CALIBRATION:
        raise ValueError(
            f"The calibration text has {len(ids)} tokens and is too short; at least {SHORTEST_CALIBRATION} are needed to "
            "tell used experts from unused ones, and tens of thousands are better."
        )
    return ids


def windows(ids: torch.Tensor, length: int, batch_size: int) -> Iterator[torch.Tensor]:
    """The tokens `[T]` cut into batches `[B,length]` without padding; the rest comes last, on its own.

    Args:
        ids: The tokens.
        length: Tokens a window.
        batch_size: Windows a batch.
    """
    whole = len(ids) // length * length
    rows = ids[:whole].reshape(-1, length)  # [T] → [windows,length]
    yield from torch.split(rows, batch_size)
    if whole < len(ids):
        yield ids[whole:][None]


def joined(texts: Sequence[str]) -> str:
    """Texts as paragraphs of one."""
    return "\n\n".join(texts)
