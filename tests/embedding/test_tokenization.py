"""Ids of texts in templates, over tokenizers of every kind: those of the whole text, of data, at a bounded price."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, SPECIAL, tokenizer_of

from ssmoe_embed.embedding.prompts import TEMPLATES, Template
from ssmoe_embed.embedding.tokenization import TemplateTokenizer

LIMIT = 40
PROSE = "The quick brown fox doesn't jump over 12345 lazy dogs, and nobody minds.\n\n  Why would they? "


def ids(kind, text, template=TEMPLATES["none"], prompt="", limit=LIMIT):
    """Ids of one text."""
    return TemplateTokenizer(tokenizer_of(kind), [template], limit)([text], prompt)["input_ids"][0].tolist()


def plainly(kind, text, template=TEMPLATES["none"], prompt="", limit=LIMIT):
    """The same by tokenizing all of the text, and then as much of it as leaves room for the template."""
    tokenizer = tokenizer_of(kind)

    def filled(part):
        return tokenizer(prompt + template.wrap(part), add_special_tokens=False)["input_ids"]

    cleaned = template.clean(text)
    row = filled(cleaned)
    if len(row) <= limit:
        return row or [tokenizer.bos_token_id]
    offsets = tokenizer(cleaned, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    keep = (limit - len(filled(""))) // template.repeats
    while len(row := filled(cleaned[: offsets[keep - 1][1]] if keep else "")) > limit:
        keep -= -((limit - len(row)) // template.repeats)
    return row


# --- long texts ---------------------------------------------------------------------------------------------------------

LONG = {
    "prose": PROSE * 110,
    "no space at all": PROSE.replace(" ", "").replace("\n", "") * 120,
    "one letter": "a" * 10_000,
    "one unknown letter": "ж" * 10_000,
    "digits": "1234567" * 1_300,
    "one more digit": "1234567" * 1_300 + "8",
    "digits after prose": "a b c " + "9" * 9_001,
    "newlines": "\n" * 10_000,
    "spaces": " " * 10_000,
    "spaces, then a word": " " * 10_000 + "word",
    "a word, spaces, a word": "word" + " " * 10_000 + "word",
    "tabs and spaces": "\t " * 5_000,
    "emoji in families": "👩‍👩‍👧‍👦🏳️‍🌈" * 900,
    "CJK": "東京は今日も晴れです。你好世界안녕하세요" * 500,
    "combining marks": "e" + "\u0301\u0323" * 5_000 + " end",
    "composable": "e\u0301o\u0308" * 2_500,
    "half a pair at the first end": "a" * 2047 + "🙂" * 5_000,
    "punctuation": "?!...---" * 1_200,
    "long words": ("x" * 150 + " ") * 70,
    "a long word late": "a b c d " * 300 + "y" * 9_000,
    "spaces before a word that takes them": "a" + " " * 10_000 + "<think>",
    "fullwidth": "ＡＢＣ１２３" * 1_700,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_a_long_text_has_the_ids_of_all_its_tokens(kind, text):
    for template in (TEMPLATES["none"], TEMPLATES["echo"]):
        assert ids(kind, text, template) == plainly(kind, text, template)


@pytest.mark.parametrize("letter", ["a", "\n", " "])
def test_a_megabyte_of_one_letter_has_the_ids_of_all_its_tokens(letter):
    text = letter * 1_000_000
    assert ids("byte_level", text) == plainly("byte_level", text)


PIECES = st.sampled_from(
    [*PROSE.split(), " ", "  ", "\n", "7", "1234", "a", "ж", "🙂", "\u0301", "ﬁ", "東", "-", "'re"]
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)), st.lists(PIECES, min_size=1, max_size=30), st.lists(PIECES, max_size=30), st.data()
)
def test_any_long_text_has_the_ids_of_all_its_tokens(kind, start, repeated, data):
    text = "".join(start) + "".join(repeated or start) * data.draw(st.integers(1, 120))
    limit = data.draw(st.integers(30, 80))
    assert ids(kind, text, limit=limit) == plainly(kind, text, limit=limit)


def test_a_text_of_ten_megabytes_is_tokenized_for_the_price_of_one_of_ten_kilobytes(monkeypatch):
    tokenizer = tokenizer_of("byte_level")
    read = []
    original = type(tokenizer).__call__

    def counting(self, texts, **options):
        read.append(sum(map(len, texts)))
        return original(self, texts, **options)

    tokenize = TemplateTokenizer(tokenizer, [TEMPLATES["prompteol"]], 128)
    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    [short], [long] = (tokenize([(PROSE * 120_000)[:length]])["input_ids"].tolist() for length in (10_000, 10_000_000))
    assert short == long
    assert len(read) % 2 == 0
    assert sum(read[len(read) // 2 :]) <= sum(read[: len(read) // 2]) < 10_000


def test_a_short_text_is_tokenized_once(monkeypatch):
    tokenizer = tokenizer_of("byte_level")
    tokenize = TemplateTokenizer(tokenizer, [TEMPLATES["prompteol"]], 128)
    read, original = [], type(tokenizer).__call__

    def counting(self, texts, **options):
        read.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    tokenize(["one", "two"])
    assert read == [TEMPLATES["prompteol"].wrap(TEMPLATES["prompteol"].clean(text)) for text in ("one", "two")]


# --- control tokens -----------------------------------------------------------------------------------------------------

OWN = Template("<|user|> say {text}</s>")
ORDINARY = ["", "a", " a", "hello world", "It's 3 o'clock.", "ﬁne 東京", "a < b | c >", "🙂", "no\nend ", "<think> so"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("around", ["{}", "a {} b", "a{}b", "{0}{0}", " {} "])
def test_a_text_never_becomes_a_control_token(kind, name, around):
    tokenizer = tokenizer_of(kind)
    control = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(one) for one in SPECIAL}
    row = ids(kind, around.format(name))
    assert control.isdisjoint(set(row) - {tokenizer.unk_token_id})
    assert ids(kind, around.format(name), OWN)[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert [one for one in ids(kind, around.format(name), OWN)[1:] if one in control - {tokenizer.unk_token_id}] == [
        tokenizer.eos_token_id
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ORDINARY)
def test_a_text_without_such_names_has_the_ids_of_the_filled_template(kind, text):
    for template, prompt in ((TEMPLATES["none"], ""), (TEMPLATES["prompteol"], "q: "), (OWN, ""), (OWN, "<s>go")):
        assert ids(kind, text, template, prompt, 200) == plainly(kind, text, template, prompt, 200)


def test_the_characters_of_a_name_are_the_tokens_of_these_characters():
    """Byte-level BPE knows every character, so what a name says is all there."""
    tokenizer = tokenizer_of("byte_level")
    row = ids("byte_level", "stop <|endoftext|> here")
    assert tokenizer.backend_tokenizer.decode(row, skip_special_tokens=True) == "stop <|endoftext|> here"
    assert len(row) > len(tokenizer("stop <|endoftext|> here")["input_ids"])


def test_template_and_text_do_not_join_into_a_control_token():
    tokenizer = tokenizer_of("byte_level")
    row = ids("byte_level", "|endoftext|>", Template("<{text}"))
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") not in row


@pytest.mark.parametrize("kind", ["unigram", "spaced_words"])
def test_a_name_that_the_normalizer_makes_is_no_control_token_either(kind):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.bos_token_id not in ids(kind, "＜ｓ＞ <s> a")


def test_the_users_tokenizer_is_left_as_it_was():
    tokenizer = tokenizer_of("metaspace")
    before = tokenizer("a <s> b")["input_ids"]
    ids("metaspace", "a <s> b", OWN)
    assert tokenizer("a <s> b")["input_ids"] == before
