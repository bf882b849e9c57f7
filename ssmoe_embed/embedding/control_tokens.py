"""A text is data: the name of a control token in it (`<|endoftext|>`) is read as the characters that it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

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
        """Ids of a template with each of some texts in it.

        Args:
            wrap: Puts a text into the template.
            texts: The texts.
        """
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
        spelled = _spelled(layout["model"])
        names = {
            name: f"{_MARK}{number}{_MARK}"
            for number, name in self._control.items()
            if len(name) > 1 and name not in spelled
        }
        for token in layout["added_tokens"]:
            if token["content"] in names:
                token |= {"content": names[token["content"]], "special": False, "normalized": False}
        layout["model"] |= _with_names(layout["model"], names)
        layout |= {"truncation": None, "padding": None, "post_processor": None}
        plain = Tokenizer.from_str(json.dumps(layout))
        plain.encode_special_tokens = True
        return plain, names


def _spelled(model: dict[str, Any]) -> set[str]:
    """Words of a vocabulary that are merged from others, or part of such: names among them are words like any other."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", ())]
    return {"".join(pair) for pair in pairs}.union(*pairs)


def _with_names(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The vocabulary of a tokenizer's model under new names."""
    words, unknown = model["vocab"], model.get("unk_token")
    changed = (
        {names.get(word, word): number for word, number in words.items()}
        if isinstance(words, dict)
        else [[names.get(word, word), score] for word, score in words]
    )
    return {"vocab": changed} | ({"unk_token": names.get(unknown, unknown)} if unknown else {})
