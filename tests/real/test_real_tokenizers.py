"""Templates and texts through the tokenizers of well-known models, which `benchmarks/real_data.py tokenizers` fetches."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from ssmoe_embed.embedding.prompts import ENSEMBLES, TEMPLATES, templates
from ssmoe_embed.embedding.tokenization import TemplateTokenizer, clean_unicode

pytestmark = pytest.mark.slow
ROOT = Path(os.environ.get("SSMOE_REAL_DATA", Path(__file__).parents[2] / "build" / "real")) / "tokenizers"
NAMES = ("olmoe", "qwen3", "deepseek-v3", "deepseek-v4", "gpt-oss", "gemma3", "llama3")
LIMIT = 64
PROMPTS = [*TEMPLATES, *ENSEMBLES, "Topic of {text}:", "{text}"]
WORDS = ["the", "cook", "made", "a", "soup", "on", "monday", "before", "the", "war", "and", "nobody", "forgot"]
PLAIN = {
    "empty": "",
    "one word": "soup",
    "a sentence": "Nobody forgot three letters, on Monday.",
    "quoted": 'He said "soup" to the cook_',
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 family",
    "CJK": "東京は晴れです。北京今天下雨。서울은 흐리다",
    "right to left": "مرحبا بالعالم שלום עולם",
    "combining marks": "e\u0301 n\u0303 a\u0308\u0323 Z\u0351\u036b\u0343",
    "lone surrogates": "a \ud83d b \udc69 c",
    "white space": "  two  \n\n\tthree   ",
}
LONG = {
    "5,000 words": " ".join(WORDS[i % len(WORDS)] for i in range(5000)),
    "5,000 emoji": "👩‍👩‍👧" * 5000,
    "20,000 letters": "x" * 20000,
    "5,000 CJK": "東京今天晴" * 1000,
}
CONTROL = (
    "<|endoftext|> <|im_start|>user <pad> </s> <s> <bos> <eos> <|end_of_text|> <|begin_of_text|> <|return|> <|startoftext|> "
    "<｜begin▁of▁sentence｜> <end_of_turn> <|padding|> <|eot_id|> <unk> [MASK]"
)


@pytest.fixture(scope="module", params=NAMES)
def folder(request):
    if not (ROOT / request.param / "tokenizer.json").is_file():
        pytest.skip(f"{ROOT / request.param} is not there; python benchmarks/real_data.py tokenizers fetches it")
    return ROOT / request.param


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def rows(tokenizer, prompt, text, limit=100_000):
    """The real ids of one text in each template of a prompt."""
    features = TemplateTokenizer(tokenizer, templates(prompt), limit)([text])
    pairs = zip(features["input_ids"], features["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def before(tokenizer):
    """What the tokenizer puts before a text."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return whole[: len(whole) - len(bare)]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_the_filled_template_where_nothing_is_cut(prompt, tokenizer):
    for text in PLAIN.values():
        for template, row in zip(templates(prompt), rows(tokenizer, prompt, text), strict=True):
            filled = template.wrap(template.clean(clean_unicode(text)))
            expected = before(tokenizer) + tokenizer(filled, add_special_tokens=False)["input_ids"]
            assert row == expected or (not expected and len(row) == 1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_long_text_is_cut_and_its_template_is_not(prompt, tokenizer):
    limit = LIMIT * 2 if prompt == "echo" else LIMIT
    for text in LONG.values():
        for template, row in zip(templates(prompt), rows(tokenizer, prompt, text, limit), strict=True):
            assert len(row) <= limit
            written = tokenizer.decode(row[len(before(tokenizer)) :], clean_up_tokenization_spaces=False)
            start, *_, end = template.pattern.split("{text}")
            assert written.endswith(end)
            assert written.lstrip().startswith(start.lstrip())
            used = len(row) - len(rows(tokenizer, template.pattern, "", limit)[0])
            assert used > (limit // 8)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_text_that_spells_control_tokens_has_none(prompt, tokenizer):
    control = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    spelled = list(control.values())
    if prompt != "none":  # some have thousands of reserved ones
        spelled = spelled[:20] + spelled[20 :: max(1, len(spelled) // 20)]
    alone = [rows(tokenizer, template.pattern, "soup")[0] for template in templates(prompt)]
    for text in (CONTROL, *spelled):
        for template, own, row in zip(templates(prompt), alone, rows(tokenizer, prompt, text), strict=True):
            assert [token for token in row if token in control] == [token for token in own if token in control]
            assert "".join(text.split())[:12] in "".join(tokenizer.decode(row).split()) or template.quoted


def test_what_stands_before_a_text_does_so_once(tokenizer):
    for prompt in PROMPTS:
        for row in rows(tokenizer, prompt, "soup"):
            assert row[: len(before(tokenizer))] == before(tokenizer)
            if tokenizer.bos_token_id is not None:
                assert row.count(tokenizer.bos_token_id) <= 1


def test_padding_changes_no_text(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)  # one that can be changed
    texts = [PLAIN["a sentence"], PLAIN["empty"], PLAIN["CJK"]]
    alone = [rows(tokenizer, "prompteol", text)[0] for text in texts]
    for pad in ("own", "eos", "none"):
        if pad != "own":
            tokenizer.pad_token = tokenizer.eos_token if pad == "eos" else None
        for tokenizer.padding_side in ("left", "right"):
            features = TemplateTokenizer(tokenizer, templates("prompteol"), 512)(texts)
            for ids, mask, expected in zip(features["input_ids"], features["attention_mask"], alone, strict=True):
                assert ids[mask.bool()].tolist() == expected, pad
                padding = mask if tokenizer.padding_side == "right" else mask.flip(0)
                assert torch.equal(padding, padding.sort(descending=True).values)


def test_the_closing_quote_of_prompteol_is_where_a_text_is_read_whatever_precedes_it(tokenizer):
    """A tokenizer may merge `word:"` in its own way, but the last token always ends with the quote."""
    for text in PLAIN.values():
        [row] = rows(tokenizer, "prompteol", text)
        assert tokenizer.decode(row[-1:]).endswith('"')
        [other] = rows(tokenizer, "prompteol", "soup")
        assert row[-4:] == other[-4:]
