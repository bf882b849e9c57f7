"""Text → template → token ids, with the template's end always kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ssmoe_embed.embedding.prompts import Template


class TextError(ValueError):
    """An input that is no text."""


def check_texts(texts: Sequence[object], where: str = "the texts") -> None:
    """Make sure that every input is a string.

    Raises:
        TextError: One is not; the message names its position among `where`, its type and its value.
    """
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            shown = repr(text)
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise TextError(
                f"Expected a str at position {position} of {where}, got {type(text).__name__}: {shown}. "
                "Convert it with str(...), or leave it out."
            )


def clean_unicode(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class TemplateTokenizer:
    """Puts texts into templates and makes token ids of at most a given number."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, templates: Sequence[Template], limit: int) -> None:
        """Bind a tokenizer to templates.

        Args:
            tokenizer: The base model's; a fast one, since long texts are cut by its character offsets.
            templates: What stands around each text; each of them makes a row.
            limit: The most tokens of one row, template included.

        Raises:
            ValueError: The tokenizer is slow, or a template alone fills the limit.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which knows no character offsets; pass "
                "processor_kwargs={'use_fast': True} or convert the tokenizer to a fast one."
            )
        self._tokenizer = tokenizer
        self._templates = tuple(templates)
        self._limit = limit
        self._before = _leading_special_tokens(tokenizer)
        self._check_budget("")

    def __call__(self, texts: Sequence[str], prompt: str = "") -> dict[str, torch.Tensor]:
        """Token ids of a batch.

        Special tokens that the tokenizer puts before a text are kept; those it appends are not, since the state is read
        where the template ends.

        Args:
            texts: `B` texts.
            prompt: Put before each template, a sentence-transformers prompt.

        Returns:
            `input_ids` and `attention_mask`, both `[B·P,T]` for `P` templates (the rows of one text stand together),
            padded on the tokenizer's own side.
        """
        if prompt:
            self._check_budget(prompt)
        texts = [clean_unicode(text) for text in texts]
        inputs = [(template, template.clean(text)) for text in texts for template in self._templates]
        rows = self._ids([prompt + template.wrap(text) for template, text in inputs])
        rows = [
            row if len(row) <= self._limit else self._cut(template, text, prompt)
            for row, (template, text) in zip(rows, inputs, strict=True)
        ]
        return self._padded([row or [self._placeholder()] for row in rows])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as they are, with the leading special tokens."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [self._before + list(row) for row in encoded["input_ids"]]

    def _cut(self, template: Template, text: str, prompt: str) -> list[int]:
        """Ids of a text too long, cut at its end so that the whole template fits."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        keep = (self._limit - self._size(template, prompt)) // template.repeats
        while keep > 0:
            [row] = self._ids([prompt + template.wrap(text[: offsets[keep - 1][1]])])
            if len(row) <= self._limit:
                return row
            keep -= math.ceil((len(row) - self._limit) / template.repeats)
        return self._ids([prompt + template.wrap("")])[0]

    def _size(self, template: Template, prompt: str) -> int:
        """Tokens of a template without a text."""
        return len(self._ids([prompt + template.wrap("")])[0])

    def _check_budget(self, prompt: str) -> None:
        """Make sure that at least one token of the text itself fits, wherever it stands."""
        for template in self._templates:
            taken = self._size(template, prompt)
            least = taken + template.repeats
            if least > self._limit:
                raise ValueError(
                    f"max_seq_length={self._limit} leaves no room for a text: the prompt template takes {taken} tokens. "
                    f"Set max_seq_length to at least {least}, better {taken + 64 * template.repeats}."
                )

    def _placeholder(self) -> int:
        """What stands for a text without any token."""
        candidates = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        return next((token for token in candidates if token is not None), 0)

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        side = self._tokenizer.padding_side
        ids = [torch.tensor(row) for row in rows]
        masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._placeholder()
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=float(pad), padding_side=side),  # [B,T]
            "attention_mask": pad_sequence(masks, batch_first=True, padding_side=side),  # [B,T]
        }


def _leading_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = [start for start in range(len(full) - len(bare) + 1) if full[start : start + len(bare)] == bare]
    return list(full[: starts[0]]) if bare and starts else []
