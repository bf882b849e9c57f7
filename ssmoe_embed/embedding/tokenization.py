"""Text → template → token ids, with the template's end always kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from tokenizers import Encoding, Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ssmoe_embed.embedding.prompts import Template

_MARK = "\ufdd0"
"""Encloses the new name of a control token; U+FDD0 is no character of any text."""
_HOLE = "\ufdd1"
"""Where the text goes in a template."""


class DataTokenizer:
    """A fast tokenizer that finds control tokens in templates and never in what is filled in.

    Where no control token is involved the ids are those of the tokenizer itself. Its own `split_special_tokens` does most of
    the work. A copy whose control tokens have names that nobody types does the rest: templates that have such tokens, and
    vocabularies that hold the names as words, as SentencePiece's do.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Bind a tokenizer."""
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._control = {number: token.content for number, token in added.items() if token.special}
        names = sorted((name for name in self._control.values() if len(name) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self.takes_spaces = any(token.lstrip and not token.special for token in added.values())
        """Whether a word that was added to the vocabulary takes in all the spaces before it."""

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Ids and character offsets of texts, which are all data."""
        if not texts:
            return []
        rows: list[Encoding] = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            split_special_tokens=True,
            verbose=False,
        ).encodings
        return [
            row if self._control.keys().isdisjoint(row.ids) else self._renamed[0].encode(text, add_special_tokens=False)
            for text, row in zip(texts, rows, strict=True)
        ]

    def fill(self, wrap: Callable[[str], str], texts: Sequence[str]) -> list[list[int]]:
        """Ids of a template with each of some texts in it."""
        frame = wrap(_HOLE)
        if not self._names.search(frame):
            return [row.ids for row in self.encode([wrap(text) for text in texts])]
        plain, names = self._renamed
        frame = self._names.sub(lambda found: names.get(found[0], found[0]), frame)
        filled = [frame.replace(_HOLE, text.replace(_MARK, "\ufffd")) for text in texts]
        return [row.ids for row in plain.encode_batch(filled, add_special_tokens=False)]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[str, str]]:
        """The tokenizer with its control tokens renamed, ids unchanged, and the new names by the old ones."""
        layout = json.loads(self._tokenizer.backend_tokenizer.to_str())
        model = layout["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", ())]
        spelled = {"".join(pair) for pair in pairs}.union(*pairs)  # names among them are words like any other
        names = {
            name: f"{_MARK}{number}{_MARK}"
            for number, name in self._control.items()
            if len(name) > 1 and name not in spelled
        }
        for token in layout["added_tokens"]:
            if token["content"] in names:
                token |= {"content": names[token["content"]], "special": False, "normalized": False}
        words = model["vocab"]
        if isinstance(words, dict):
            model["vocab"] = {names.get(word, word): number for word, number in words.items()}
        else:
            model["vocab"] = [[names.get(word, word), score] for word, score in words]
        if model.get("unk_token"):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        layout |= {"truncation": None, "padding": None, "post_processor": None}
        plain = Tokenizer.from_str(json.dumps(layout))
        plain.encode_special_tokens = True
        return plain, names


_CHARACTERS = 8
"""Characters of a long text that are read at first, for each token that a row may have."""
_LEAST = 2048
"""Characters that are read at first at least: a quarter of them is longer than what any tokenizer takes for one word."""
_GROWTH = 4
"""How many times as many are read where that does not settle the first tokens."""
_SHIFT = 211
"""Characters between the ends of two starts of a text: no multiple of 2, 3, 5 or 7, by which digits or letters may group."""
_SLACK = 16
"""Tokens that a text may lose where it meets its template."""


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
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class TemplateTokenizer:
    """Puts texts into templates and makes token ids of at most a given number.

    Of a text far longer than the limit only a start is tokenized. Its first tokens are those of the whole text if two
    starts, whose ends lie `_SHIFT` characters apart and long after those tokens, agree on them. For what stands later
    reaches them only through all that lies between: a word not yet ended, a chain of merges, digits grouped from their
    end, a run of marks; and each of these was cut off at two places. Where the starts do not agree, more is read, in the
    end everything.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, templates: Sequence[Template], limit: int) -> None:
        """Bind a tokenizer to templates, each of which makes a row of at most `limit` tokens, template included.

        Raises:
            ValueError: The tokenizer is slow, or a template alone fills the limit.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which knows no character offsets; pass "
                "processor_kwargs={'use_fast': True} or convert the tokenizer to a fast one."
            )
        self._tokenizer = tokenizer
        self._data = DataTokenizer(tokenizer)
        self._templates = tuple(templates)
        self._limit = limit
        bare, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        starts = [start for start in range(len(full) - len(bare) + 1) if full[start : start + len(bare)] == bare]
        self._before = list(full[: starts[0]]) if bare and starts else []  # what the tokenizer puts before a text
        self._check_budget("")

    def __call__(self, texts: Sequence[str], prompt: str = "") -> dict[str, torch.Tensor]:
        """Token ids of a batch.

        Special tokens that the tokenizer puts before a text are kept; those it appends are not, since the state is read
        where the template ends. Names of special tokens in a text are text; in a template or prompt they are tokens.

        Args:
            texts: `B` texts.
            prompt: Put before each template, a sentence-transformers prompt.

        Returns:
            `input_ids` and `attention_mask`, both `[B·P,T]` for `P` templates (the rows of one text stand together),
            padded on the tokenizer's own side.
        """
        if prompt:
            self._check_budget(prompt)
        columns = [self._rows(template, texts, prompt) for template in self._templates]  # P × [B]
        tokenizer, side = self._tokenizer, self._tokenizer.padding_side
        candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        placeholder = next((token for token in candidates if token is not None), 0)  # for a text without any token
        pad = float(placeholder if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        ids = [torch.tensor(row or [placeholder]) for rows in zip(*columns, strict=True) for row in rows]
        masks = [torch.ones_like(row) for row in ids]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad, padding_side=side),  # [B·P,T]
            "attention_mask": pad_sequence(masks, batch_first=True, padding_side=side),  # [B·P,T]
        }

    def _rows(self, template: Template, texts: Sequence[str], prompt: str) -> list[list[int]]:
        """Ids of texts in one template."""
        starts = [self._start(template, text) for text in texts]
        whole = [number for number, start in enumerate(starts) if start is None]
        cleaned = [template.clean(clean_unicode(texts[number])) for number in whole]
        rows = dict(zip(whole, self._ids(template, cleaned, prompt), strict=True))
        for number, text in zip(whole, cleaned, strict=True):
            if len(rows[number]) > self._limit:
                rows[number] = self._cut(template, text, self._data.encode([text])[0].offsets, prompt)
        return [
            rows[number] if start is None else self._cut(template, *start, prompt)
            for number, start in enumerate(starts)
        ]

    def _ids(self, template: Template, texts: Sequence[str], prompt: str) -> list[list[int]]:
        """Ids of cleaned texts in a template, with the leading special tokens."""
        return [self._before + row for row in self._data.fill(lambda text: prompt + template.wrap(text), texts)]

    def _start(self, template: Template, text: str) -> tuple[str, list[tuple[int, int]]] | None:
        """A start with more tokens than fit, and where its first ones are, as in the whole text; None if none will do."""
        size = max(_LEAST, _CHARACTERS * self._limit)
        while size < len(text):
            # two characters that are one, of a text that was read as UTF-16, stay together
            end = size - ("\ud800" <= text[size - 1] <= "\udbff")
            start = clean_unicode(text[:end])
            start = template.clean(start)[: len(start)]  # without the full stop that only the whole text's end gets
            offsets = self._settled(start)
            if offsets is not None:
                return start, offsets
            size *= _GROWTH
        return None

    def _settled(self, start: str) -> list[tuple[int, int]] | None:
        """Where the first tokens of a start of a text are, if they are more than fit and do not depend on what follows."""
        count = self._limit + _SLACK
        [long] = self._data.encode([start])
        if len(long.ids) < count:
            return None
        offsets = long.offsets[:count]
        end = offsets[-1][1]
        if end > len(start) * 3 // 4 or (self._data.takes_spaces and start[end:].isspace()):
            return None
        [short] = self._data.encode([start[:-_SHIFT]])
        return offsets if short.ids[:count] == long.ids[:count] and short.offsets[:count] == offsets else None

    def _cut(self, template: Template, text: str, offsets: Sequence[tuple[int, int]], prompt: str) -> list[int]:
        """Ids of a cleaned text (or start) too long, with its first tokens at `offsets`, cut so that the template fits."""
        keep = min((self._limit - self._size(template, prompt)) // template.repeats, len(offsets))
        while keep > 0:
            [row] = self._ids(template, [text[: offsets[keep - 1][1]]], prompt)
            if len(row) <= self._limit:
                return row
            keep -= math.ceil((len(row) - self._limit) / template.repeats)
        return self._ids(template, [""], prompt)[0]

    def _size(self, template: Template, prompt: str) -> int:
        """Tokens of a template without a text."""
        return len(self._ids(template, [""], prompt)[0])

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
