"""Pack texts and prose into rows of one fixed length, deterministically.

Texts are read out in one of three templates; where the reading position is the last of its text, no next token is
asked of it, so that distillation and language modelling do not pull at the same hidden state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fast_model import Block
from tokenizer import EOS_ID, PAD_ID, inside_quotes
from torch import Tensor

PROMPTEOL = ('This sentence : "', '" means in one word:"')
TEMPLATES = ("eos", "prompteol", "plain")
SHARES = (0.6, 0.25, 0.15)
"""How often each template is drawn."""
WEIGHTS = (1.0, 1.0, 0.3)
"""What each template counts in the distillation loss."""
LOWER = 0.35
SHORT = 4
"""Texts of at most as many tokens come twice an epoch: they cost little, and words are asked for alone."""
IGNORED = -100


class TokenStore:
    """Texts as token ids, read from the file that `tokenizer.py` wrote."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as data:
            self.ids, self.offsets = data["ids"], data["offsets"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def limit(self, count: int) -> None:
        """Forget all but the first texts."""
        self.offsets = self.offsets[: count + 1]

    def select(self, numbers: list[int]) -> TokenStore:
        """Return a store of some of the texts."""
        return TokenStore.of([self.text(number) for number in numbers])

    @classmethod
    def of(cls, pieces: list[np.ndarray]) -> TokenStore:
        """Return a store of the ids of some texts."""
        chosen = cls.__new__(cls)
        chosen.ids = np.concatenate([*pieces, np.zeros(0, np.uint16)])
        chosen.offsets = np.cumsum([0, *map(len, pieces)])
        return chosen

    def text(self, index: int) -> np.ndarray:
        """Return the ids of one text."""
        piece: np.ndarray = self.ids[self.offsets[index] : self.offsets[index + 1]]
        return piece


class Templates:
    """Puts a text into one of `TEMPLATES`."""

    def __init__(self, tokenizer: Any) -> None:
        one = (tokenizer, inside_quotes(tokenizer))
        before, after = (
            of(part, add_special_tokens=False)["input_ids"] for of, part in zip(one, PROMPTEOL, strict=True)
        )
        self.before = [[], before, []]
        self.after = [[EOS_ID], after, []]

    def apply(self, ids: np.ndarray, template: int, limit: int) -> np.ndarray:
        """Return the ids to run; the text is cut so that the template survives."""
        before, after = self.before[template], self.after[template]
        return np.concatenate((before, ids[: limit - len(before) - len(after)], after)).astype(np.int64)


@dataclass(frozen=True)
class Texts:
    """Texts to distil, in the forms in which they are read.

    Attributes:
        usual: as they are.
        lower: in lower case, which the teacher does not tell apart; drawn in `LOWER` of the cases.
        quoted: inside quotation marks, where no space is put before them.
    """

    usual: TokenStore
    lower: TokenStore
    quoted: TokenStore

    def __len__(self) -> int:
        return len(self.usual)

    def limit(self, count: int) -> None:
        """Forget all but the first texts."""
        for store in (self.usual, self.lower, self.quoted):
            store.limit(count)

    def short(self) -> np.ndarray:
        """Return the numbers of the texts of at most `SHORT` tokens."""
        return np.flatnonzero(np.diff(self.usual.offsets) <= SHORT)

    def draw(self, number: int, template: int, rng: np.random.Generator) -> np.ndarray:
        """Return the ids of a text for a template."""
        lower = rng.random() < LOWER
        return form(self.usual if not lower else self.lower, self.quoted, template).text(number)


def form(usual: TokenStore, quoted: TokenStore, template: int) -> TokenStore:
    """Return the store of the texts as they stand in a template."""
    return quoted if TEMPLATES[template] == "prompteol" else usual


@dataclass(frozen=True)
class Batch:
    """Packed rows.

    Attributes:
        ids: `[N]` tokens, row after row.
        segments: `[N]` where in its row the token's text begins; padding is -1.
        labels: `[N]` next tokens, `IGNORED` where there is none.
        readout: `[texts]` flat positions of the texts' vectors.
        texts: `[texts]` their numbers in the store.
        weights: `[texts]` their weights in the loss.
        layout: the rows' lengths.
    """

    ids: Tensor
    segments: Tensor
    labels: Tensor
    readout: Tensor
    texts: np.ndarray
    weights: Tensor
    layout: tuple[Block, ...]


class Packer:
    """Fills the rows of a layout with pieces, first fit."""

    def __init__(self, layout: tuple[Block, ...]) -> None:
        self.layout = layout
        lengths = [block.length for block in layout for _ in range(block.rows)]
        self.ends = np.cumsum(lengths).tolist()
        self.next = [0, *self.ends[:-1]]
        self.ids = np.full(sum(lengths), PAD_ID, np.int64)
        self.segments = np.full(sum(lengths), -1, np.int64)
        self.labels = np.full(sum(lengths), IGNORED, np.int64)
        self.readout: list[int] = []
        self.texts: list[int] = []
        self.weights: list[float] = []

    def room(self, row: int) -> int:
        """Return how many tokens still fit into a row."""
        return int(self.ends[row] - self.next[row])

    def add(self, piece: np.ndarray, rows: Iterable[int]) -> int | None:
        """Place a piece in the first of `rows` with room; returns the flat position of its last token."""
        for row in rows:
            if len(piece) <= self.room(row):
                start, end = self.next[row], self.next[row] + len(piece)
                self.ids[start:end] = piece
                self.segments[start:end] = start
                self.labels[start : end - 1] = piece[1:]
                self.next[row] = end
                return int(end - 1)
        return None

    def add_text(self, piece: np.ndarray, rows: Iterable[int], text: int, weight: float) -> bool:
        """Place a text that is to be read out; says whether there was room."""
        last = self.add(piece, rows)
        if last is not None:
            self.readout.append(last)
            self.texts.append(text)
            self.weights.append(weight)
        return last is not None

    def batch(self) -> Batch:
        """Return what was packed."""
        return Batch(
            torch.from_numpy(self.ids),
            torch.from_numpy(self.segments),
            torch.from_numpy(self.labels),
            torch.tensor(self.readout, dtype=torch.long),
            np.array(self.texts, np.int64),
            torch.tensor(self.weights, dtype=torch.float32),
            self.layout,
        )


class Sampler:
    """Draws batches: every text once an epoch, short ones twice, in random order; prose in random places.

    Args:
        texts: the texts to distil.
        prose: the passages for the language model.
        templates: how texts are read out.
        partners: for each text the number of another that means the same, or -1; drawn together with it.
        layout: the rows of a batch, the longest first.
        prose_rows: how many of the first rows hold prose.
        seed: fixes everything.
    """

    def __init__(
        self,
        texts: Texts,
        prose: TokenStore,
        templates: Templates,
        *,
        partners: np.ndarray,
        layout: tuple[Block, ...],
        prose_rows: int,
        seed: int,
    ) -> None:
        self.texts, self.prose, self.templates, self.partners = texts, prose, templates, partners
        self.layout, self.prose_rows, self.seed = layout, prose_rows, seed
        rows = sum(block.rows for block in layout)
        self._text_rows = range(rows - 1, prose_rows - 1, -1)  # short rows first: the long ones are for long texts
        self.epoch, self.cursor, self.drawn = 0, 0, 0
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 1, self.epoch]).permutation(
            np.concatenate((np.arange(len(self.texts)), self.texts.short()))
        )

    def state(self) -> dict[str, int]:
        """Return what `restore` needs."""
        return {"epoch": self.epoch, "cursor": self.cursor, "drawn": self.drawn}

    def restore(self, state: dict[str, int]) -> None:
        """Continue where another sampler stood."""
        self.epoch, self.cursor, self.drawn = state["epoch"], state["cursor"], state["drawn"]
        self._order = self._shuffled()

    def draw(self) -> Batch:
        """Return the next batch."""
        rng = np.random.default_rng([self.seed, 2, self.drawn])
        packer = Packer(self.layout)
        for row in range(self.prose_rows):
            self._fill_with_prose(packer, row, rng)
        misses = 0
        while misses < 4:
            if self.cursor >= len(self._order):
                self.epoch, self.cursor = self.epoch + 1, 0
                self._order = self._shuffled()
            text = int(self._order[self.cursor])
            self.cursor += 1
            for one in (text, int(self.partners[text])):
                if one >= 0 and one not in packer.texts:
                    template = int(rng.choice(len(TEMPLATES), p=SHARES))
                    piece = self.templates.apply(self.texts.draw(one, template, rng), template, self.layout[0].length)
                    misses += not packer.add_text(piece, self._text_rows, one, WEIGHTS[template])
        self.drawn += 1
        return packer.batch()

    def _fill_with_prose(self, packer: Packer, row: int, rng: np.random.Generator) -> None:
        """Fill a row with passages that end in EOS; the last one is cut."""
        while (room := packer.room(row)) > 8:
            passage = self.prose.text(int(rng.integers(len(self.prose))))
            start = int(rng.integers(max(1, len(passage) - self.layout[0].length // 2)))
            piece = np.append(passage[start:].astype(np.int64), EOS_ID)[:room]
            packer.add(piece, [row])
