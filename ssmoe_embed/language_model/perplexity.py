"""Perplexity of a text of any length, by a sliding window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.families import family_of

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
    """The tokens `[T]` cut into batches `[B,length]` without padding; the rest comes last, on its own."""
    whole = len(ids) // length * length
    rows = ids[:whole].reshape(-1, length)  # [T] → [windows,length]
    yield from torch.split(rows, batch_size)
    if whole < len(ids):
        yield ids[whole:][None]


def joined(texts: Sequence[str]) -> str:
    """Texts as paragraphs of one."""
    return "\n\n".join(texts)


_WINDOW = 1024


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        value: `exp` of the mean negative log-likelihood of a token.
        nll: That mean, in nats.
        stderr: Standard error of the mean, as if tokens were independent.
        tokens: Tokens that were predicted: all but the first.
        window: Tokens that the model sees at once.
        stride: How far the window moves.
    """

    value: float
    nll: float
    stderr: float
    tokens: int
    window: int
    stride: int

    def __str__(self) -> str:
        return f"perplexity {self.value:.2f} over {self.tokens:,} tokens (window {self.window}, stride {self.stride})"


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: bool = True,
) -> Perplexity:
    """The perplexity of a text; every token but the first is predicted once, after at least `window - stride` others.

    Args:
        model: A causal language model, re-routed or not.
        tokenizer: Its tokenizer.
        text: The text.
        window: Tokens that the model sees at once; by default 1,024, or all of the model's positions if they are fewer.
        stride: How far the window moves; by default half of it.
        progress: Show a progress bar.

    Raises:
        ValueError: The text has fewer than two tokens, or window and stride do not fit one another or the model.
    """
    window, stride = _checked(model, window, stride)
    ids = predicted_ids(tokenizer, text).to(model.device)
    losses = []
    predicted = 1  # the first token follows nothing
    starts = range(0, max(1, len(ids) - window + stride), stride)
    for start in tqdm(starts, desc="Perplexity", unit="window", disable=not progress):
        end = min(start + window, len(ids))
        logits = model(input_ids=ids[None, start:end], use_cache=False).logits[0].float()  # [T,V]
        new = slice(predicted - start - 1, end - start - 1)  # logits at t predict token t+1
        losses.append(F.cross_entropy(logits[new], ids[predicted:end], reduction="none").double().cpu())
        predicted = end
    each = torch.cat(losses)
    mean = float(each.mean())
    stderr = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan
    return Perplexity(math.exp(mean), mean, stderr, len(each), window, stride)


def predicted_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """The tokens `[T]` of a text whose perplexity is asked for.

    Raises:
        ValueError: They are fewer than two.
    """
    ids = token_ids(tokenizer, text)
    if len(ids) < 2:
        raise ValueError(f"The text has {len(ids)} tokens, so there is nothing to predict; pass a longer one.")
    return ids


def _checked(model: PreTrainedModel, window: int | None, stride: int | None) -> tuple[int, int]:
    """Window and stride, with their defaults."""
    longest = getattr(family_of(model).text_config(model.config), "max_position_embeddings", None)
    if window is None:
        window = _WINDOW if longest is None else min(_WINDOW, longest)
    stride = window // 2 if stride is None else stride
    if window < 2 or not 1 <= stride < window:
        raise ValueError(f"window={window}, stride={stride} do not fit: choose window ≥ 2 and 1 ≤ stride < window.")
    if longest is not None and window > longest:
        raise ValueError(f"window={window} is more than the model's {longest} positions; choose at most as many.")
    return window, stride
