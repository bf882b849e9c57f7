"""The "AAA" corruption: a share of a text's words becomes, or is joined by, a meaningless token.

The paper (https://arxiv.org/abs/2605.30992) says that random "AAA" sequences are put into the input and names neither the
operation nor the rate, so both operations and a `ladder` of rates are offered. What becomes of a text depends on it and
the settings alone, never on its batch.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from ssmoe_embed.common.choices import Choice, unknown

CLEAN = "clean"
"""Name of no corruption."""
TEXT_KEYS = ("text", "title", "body", "query")
"""Keys of a batch of mteb that hold texts."""
LADDER_RATES = (0.015, 0.05, 0.1, 0.2, 0.4, 0.8)


class Operation(Choice):
    """What is done to a text."""

    REPLACE = "replace"
    """Randomly chosen words give way to the token; the punctuation around them stays."""
    INSERT = "insert"
    """The token is put into randomly chosen gaps between words; several in one gap make a run."""


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt texts.

    Attributes:
        operation: `replace` or `insert`.
        rate: Nominal share of a text's words: `max(int(rate · words), minimum)` tokens come into it.
        token: What comes in; no white space.
        seed: Another seed chooses other words.
        minimum: Fewest tokens for a text, as far as it has words to replace, or a word at all for `insert`.
        keep_stopwords: Never replace a stop word (scikit-learn's English list); has no effect on `insert`.
        train_split: Also corrupt the texts that a task trains its classifier on.

    Raises:
        ValueError: A value is out of range.
    """

    operation: Operation = Operation.REPLACE
    rate: float = 0.015
    token: str = "AAA"
    seed: int = 0
    minimum: int = 1
    keep_stopwords: bool = True
    train_split: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "operation", Operation.parse(self.operation, "operation"))
        object.__setattr__(self, "rate", float(self.rate))
        most = 1.0 if self.operation is Operation.REPLACE else math.inf
        if not (math.isfinite(self.rate) and 0 <= self.rate <= most):
            msg = f"rate={self.rate} is not a share of words; give a number from 0 to 1 (insert takes more than 1 too)."
            raise ValueError(msg)
        if not TOKEN.fullmatch(self.token):
            msg = f"token={self.token!r} is empty or holds white space; give one word such as 'AAA'."
            raise ValueError(msg)
        if self.minimum < 0:
            raise ValueError(f"minimum={self.minimum} is negative; give the fewest tokens a text gets, 0 or more.")

    @classmethod
    def parse(cls, name: str) -> Corruption | None:
        """Read a name such as `replace@0.05` or `insert@0.2,seed=1`; `clean` gives None.

        The inverse of `name`. Operation and rate may be left out where they are the defaults: `replace`, `insert`.

        Raises:
            ValueError: The name cannot be read.
        """
        if name == CLEAN:
            return None
        head, *deviations = name.split(",")
        operation, _, rate = head.partition("@")
        if operation not in list(Operation):
            raise ValueError(unknown("corruption", name, [CLEAN, *(c.name for c in ladder())]))
        values: dict[str, Any] = {}
        try:
            if rate:
                values["rate"] = float(rate)
            for deviation in deviations:
                setting, _, value = deviation.partition("=")
                values[setting] = _READERS[setting](value)
        except (KeyError, ValueError):
            msg = (
                f"corruption={name!r} cannot be read; write OPERATION@RATE, then ,setting=value for the settings "
                f"{', '.join(_READERS)}: for example 'insert@0.2,seed=1'."
            )
            raise ValueError(msg) from None
        return cls(Operation(operation), **values)

    @property
    def name(self) -> str:
        """A name of its own for every setting, fit for a folder: `replace@0.015`, `insert@0.2,seed=1`."""
        default = Corruption()
        parts = [f"{self.operation}@{_number(self.rate)}"]
        for setting in _READERS:
            value = getattr(self, setting)
            if value != getattr(default, setting):
                parts.append(f"{setting}={quote(str(value), safe='')}")
        return ",".join(parts)

    def apply(self, text: str) -> str:
        """The corrupted text; a text without a word stays as it is."""
        return self._apply(text)[0]

    def report(self, texts: Iterable[str]) -> Tally:
        """Count what corrupting these texts does, above all the realised rate."""
        tally = Tally(self.rate)
        for text in texts:
            tally.add(*self._apply(text)[1:])
        return tally

    def covers(self, split: str | None, eval_splits: Iterable[str]) -> bool:
        """Whether the texts of a task's split are to be corrupted; a split that is not evaluated is for training."""
        return self.train_split or split is None or split in set(eval_splits)

    def wrap(self, inputs: Any, tally: Tally | None = None) -> Any:
        """Make a DataLoader of mteb give corrupted texts: all of `TEXT_KEYS`, whatever the task's type.

        The DataLoader itself is changed (its `collate_fn`) and returned; wrapping it again with a corruption replaces
        the first one.

        Args:
            inputs: DataLoader whose batches are mappings.
            tally: Counts what is done, on request. A text that stands under two keys is counted twice.
        """
        collate = getattr(inputs.collate_fn, "clean", inputs.collate_fn)
        inputs.collate_fn = _Corrupting(collate, self, tally)
        return inputs

    def _apply(self, text: str) -> tuple[str, int, int]:
        """Corrupted text, number of words, number of tokens that came in."""
        words = word_spans(text)
        if not words:
            return text, 0, 0
        count = max(int(self.rate * len(words)), self.minimum)
        digest = hashlib.blake2b(f"{self.seed}\x00{text}".encode("utf-8", "surrogatepass"), digest_size=16)
        rng = random.Random(int.from_bytes(digest.digest(), "big"))
        if self.operation is Operation.INSERT:
            return self._insert(text, count, rng), len(words), count
        candidates = [w for w in words if not (self.keep_stopwords and is_stopword(text[slice(*w)]))]
        rng.shuffle(candidates)  # not sampled: so a higher rate replaces the same words, and more
        chosen = sorted(candidates[:count])
        return exchange(text, [(start, end, self.token) for start, end in chosen]), len(words), len(chosen)

    def _insert(self, text: str, count: int, rng: random.Random) -> str:
        spans = [match.span() for match in TOKEN.finditer(text)]
        end = spans[-1][1]
        gaps = [*(start for start, _ in spans), end]
        drawn = Counter(rng.choice(gaps) for _ in range(count))
        runs = {place: " ".join([self.token] * times) for place, times in drawn.items()}
        return exchange(text, [(at, at, f" {run}" if at == end else f"{run} ") for at, run in sorted(runs.items())])


@dataclass
class Tally:
    """How much was corrupted.

    Attributes:
        nominal: The rate asked for.
        texts: Number of texts.
        touched: Number of texts that a token came into.
        words: Number of words of the clean texts.
        tokens: Number of tokens that came in.
    """

    nominal: float
    texts: int = 0
    touched: int = 0
    words: int = 0
    tokens: int = 0

    @property
    def realised(self) -> float:
        """Tokens per word of the clean texts; 0 without words."""
        return self.tokens / self.words if self.words else 0.0

    def add(self, words: int, tokens: int) -> None:
        """Count one text."""
        self.texts += 1
        self.touched += tokens > 0
        self.words += words
        self.tokens += tokens

    def __str__(self) -> str:
        return f"nominal rate {self.nominal:.3g}, realised {self.realised:.3g} ({self.tokens} of {self.words} words)"


def corrupt(
    text: str,
    *,
    operation: str = "replace",
    rate: float = 0.015,
    token: str = "AAA",
    seed: int = 0,
    minimum: int = 1,
    keep_stopwords: bool = True,
) -> str:
    """Corrupt one text; the arguments are those of `Corruption`."""
    return Corruption(Operation.parse(operation, "operation"), rate, token, seed, minimum, keep_stopwords).apply(text)


def ladder(
    operations: Iterable[str] = ("replace", "insert"), rates: Iterable[float] = LADDER_RATES, **settings: Any
) -> list[Corruption]:
    """Corruptions of rising nominal rate, to find the one that costs as much as the paper reports.

    Args:
        operations: Which operations.
        rates: Nominal rates.
        **settings: Other settings of every `Corruption`.
    """
    chosen = itertools.product(operations, rates)
    return [Corruption(Operation.parse(one, "operation"), rate, **settings) for one, rate in chosen]


@dataclass(frozen=True)
class _Corrupting:
    """A collate function that corrupts the texts of the batch that another one makes."""

    clean: Callable[[Any], Any]
    corruption: Corruption
    tally: Tally | None

    def __call__(self, items: Any) -> Any:
        batch = self.clean(items)
        if not isinstance(batch, Mapping):
            return batch
        return {key: list(map(self._one, value)) if key in TEXT_KEYS else value for key, value in batch.items()}

    def _one(self, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        corrupted, words, tokens = self.corruption._apply(text)
        if self.tally is not None:
            self.tally.add(words, tokens)
        return corrupted


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


_boolean = {"True": True, "False": False}.__getitem__
_READERS: dict[str, Callable[[str], Any]] = {
    "token": unquote,
    "seed": int,
    "minimum": int,
    "keep_stopwords": _boolean,
    "train_split": _boolean,
}
"""How a setting is read from a name; all but operation and rate, which come first."""


TOKEN = re.compile(r"\S+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each word, without the punctuation around it."""
    spans = []
    for match in TOKEN.finditer(text):
        start, end = match.span()
        while start < end and _is_punctuation(text[start]):
            start += 1
        while start < end and _is_punctuation(text[end - 1]):
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans


def exchange(text: str, changes: list[tuple[int, int, str]]) -> str:
    """The text with each span, in order, exchanged for a string."""
    pieces, done = [], 0
    for start, end, new in changes:
        pieces += [text[done:start], new]
        done = end
    return "".join([*pieces, text[done:]])


def is_stopword(word: str) -> bool:
    """Whether a word is on scikit-learn's English list; endings such as 's, 'll and n't do not matter."""
    word = word.lower().replace("’", "'")
    return bool({word, word.replace("'", ""), word.split("'")[0], word.split("n't")[0]} & _stopwords())


@functools.cache
def _stopwords() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
