"""Prompts, and every kind of text that a person or a crawler comes up with."""

import numpy as np
import pytest
import torch
from having import having
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tiny import make_tokenizer, save_model
from transformers import AutoTokenizer

import ssmoe_embed
from ssmoe_embed import SSMoE
from ssmoe_embed.embedding.prompts import TEMPLATES

QUIET = {"show_progress_bar": False}
ONE_WORD = (
    "style",
    "sentiment",
    "tone",
    "intent",
    "complexity",
    "subjectivity",
    "topic",
    "language-style",
    "grammar-structure",
)


@pytest.fixture(scope="module")
def model(built):
    """A model through `load`; never change it."""
    return ssmoe_embed.load(built, progress=False)


@pytest.fixture
def module(olmoe):
    return SSMoE.from_base(olmoe, method="moee", calibration="none", progress=False)


@pytest.fixture(scope="module")
def tokenizer(olmoe):
    return AutoTokenizer.from_pretrained(olmoe)


@pytest.fixture
def with_tokenizer(tmp_path):
    """A module over a tokenizer of a given kind."""

    def make(**kind):
        folder = save_model(tmp_path, "mixtral", make_tokenizer(**kind))
        return SSMoE.from_base(folder, method="moee", calibration="none", progress=False)

    return make


def ids(module, text, prompt=None):
    """Token ids of one text, without padding."""
    features = module.preprocess([text], prompt=prompt)
    return features["input_ids"][0][features["attention_mask"][0].bool()].tolist()


def vectors(module, texts):
    with torch.inference_mode():
        return module.forward(module.preprocess(texts))["sentence_embedding"]


# --- prompts ----------------------------------------------------------------------------------------------------------

WRAPPED = [
    ("none", 'it\'s "a_b"', 'it\'s "a_b"'),
    ("none", "no full stop", "no full stop"),
    ("prompteol", "A cat", 'This sentence : "A cat." means in one word:"'),
    ("prompteol", "Is it?", 'This sentence : "Is it?" means in one word:"'),
    ("prompteol", 'say "a_b"!', 'This sentence : "say \'a b\'!" means in one word:"'),
    ("prompteol", "", 'This sentence : "" means in one word:"'),
    ("release-none", "A cat", '"A cat."'),
    ("release-none", 'He said "no"', "\"He said 'no'\""),
    ("sentiment", "A cat.", 'The sentiment of this sentence : "A cat." in one word is:"'),
    ("Topic: {text} Answer:", 'a_"b', 'Topic: a_"b Answer:'),
    ("{text}", "bare", "bare"),
    ("{text} {other}", "braces", "braces {other}"),
    ("{text} and {text}", 'a_"b', 'a_"b and a_"b'),
    ("echo", "A cat", "Rewrite the sentence: A cat\nThe rewritten sentence: A cat"),
]


@pytest.mark.parametrize(("prompt", "text", "whole"), WRAPPED)
def test_a_template_equals_the_tokenisation_of_the_whole_string(prompt, text, whole, module, tokenizer):
    having(module, prompt=prompt)
    assert ids(module, text) == tokenizer(whole)["input_ids"]


def test_the_releases_templates_are_all_there():
    assert {"none", "prompteol", "release-none", *ONE_WORD} <= set(TEMPLATES)


@pytest.mark.parametrize("name", ONE_WORD)
def test_a_one_word_template_names_its_aspect_and_ends_ready_for_the_word(name, module, tokenizer):
    text = tokenizer.decode(ids(having(module, prompt=name), "A cat."))
    assert name.split("-")[0][:6] in text
    assert '"A cat."' in text
    assert text.endswith(':"')


@pytest.mark.parametrize(("method", "calibration"), [("moee", "none"), ("ssmoe", "none"), ("ssmoe", "standardize")])
def test_metaeol_is_the_mean_of_the_one_word_templates_features(method, calibration, built, texts):
    model, texts = ssmoe_embed.load(built, method=method, calibration="none", progress=False), texts[::4]
    single = []
    for name in ONE_WORD:
        having(model[0], prompt=name)
        single.append(model.encode(texts, **QUIET))
    mean = np.mean(single, axis=0)
    having(model[0], prompt="metaeol", calibration=calibration)
    if calibration == "standardize":
        model[0].fit_calibration(texts, progress=False)
        mean = (mean - mean.mean(axis=0)) / mean.std(axis=0)
    np.testing.assert_allclose(model.encode(texts, **QUIET), mean, rtol=0, atol=1e-3 if calibration != "none" else 2e-5)


def test_a_metaeol_vector_does_not_depend_on_its_batch(built, texts):
    model = ssmoe_embed.load(built, method="moee", prompt="metaeol", calibration="none", progress=False)
    alone = np.stack([model.encode(text, **QUIET) for text in texts[:6]])
    np.testing.assert_allclose(model.encode(texts[:6], batch_size=4, **QUIET), alone, rtol=0, atol=1e-5)


def test_token_embeddings_under_metaeol_are_those_of_its_first_template(built, texts):
    both = [
        ssmoe_embed.load(built, prompt=prompt, calibration="none", progress=False).encode(
            texts[:3], output_value="token_embeddings", **QUIET
        )
        for prompt in ("metaeol", ONE_WORD[0])
    ]
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_text_with_the_placeholder_in_it_is_left_alone(module, tokenizer):
    having(module, prompt="prompteol")
    whole = 'This sentence : "a {text} in braces {}." means in one word:"'
    assert ids(module, "a {text} in braces {}") == tokenizer(whole)["input_ids"]


@pytest.mark.parametrize("limit", [47, 48, 64])
def test_a_text_given_twice_is_cut_alike_in_both_places(limit, module, tokenizer):
    having(module, prompt="first {text} then {text} end", max_seq_length=limit)
    kept = ids(module, "some quite long text about many things " * 50)
    assert limit - 4 <= len(kept) <= limit
    first, second = tokenizer.decode(kept).removeprefix("first ").removesuffix(" end").split(" then ")
    assert first == second != ""


def test_a_template_with_two_places_needs_room_for_both(module):
    least = len(ids(having(module, prompt="first {text} then {text} end"), "")) + 2
    having(module, max_seq_length=least)
    with pytest.raises(ValueError, match=rf"max_seq_length={least - 1} leaves no room.*at least {least}"):
        having(module, max_seq_length=least - 1)


@pytest.mark.parametrize("prompt", ["prompteol", "sentiment", "release-none", "Topic: {text} Answer:", "{text} END"])
@pytest.mark.parametrize("limit", [40, 64])
def test_the_whole_template_survives_truncation(limit, prompt, module, tokenizer):
    having(module, prompt=prompt, max_seq_length=limit)
    long = "some quite long text about many things " * 50
    kept = ids(module, long)
    assert limit - 3 <= len(kept) <= limit
    text = tokenizer.decode(kept)
    prefix, suffix = (tokenizer.decode(ids(module, "X")).split("X")[side] for side in (0, 1))
    assert text.startswith(prefix)
    assert text.endswith(suffix.lstrip("."))
    assert long.startswith(text.removeprefix(prefix).removesuffix(suffix.lstrip(".")).rstrip("\ufffd."))


@pytest.mark.parametrize("text", ["東京は晴れです" * 200, "🙂👩‍👩‍👧" * 100, "مرحبا بالعالم " * 100, "x" * 5000])
@pytest.mark.parametrize("limit", [38, 39, 40, 41, 64])
def test_truncation_keeps_to_the_limit_whatever_the_script(limit, text, module, tokenizer):
    having(module, prompt="prompteol", max_seq_length=limit)
    kept = ids(module, text)
    assert len(kept) <= limit
    assert tokenizer.decode(kept).endswith('" means in one word:"')
    assert vectors(module, [text]).isfinite().all()


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_text_at_the_limit_is_kept_whole(extra, module, tokenizer):
    text = "a b c d e f g h"
    limit = len(tokenizer(text)["input_ids"]) + extra
    having(module, max_seq_length=limit)
    assert ids(module, text) == tokenizer(text)["input_ids"][:limit]


def test_a_model_reads_no_more_than_its_base_can(tmp_path):
    folder = save_model(tmp_path, "olmoe", max_position_embeddings=32)
    module = SSMoE.from_base(folder, method="moee", calibration="none", max_seq_length=100, progress=False)
    assert module.max_seq_length == 32
    assert len(ids(module, "many words " * 50)) == 32


def test_a_template_that_leaves_no_room_for_a_text_is_refused_with_the_least_that_works(module):
    least = len(ids(having(module, prompt="prompteol"), "")) + 1
    having(module, max_seq_length=least)
    with pytest.raises(ValueError, match=rf"max_seq_length={least - 2} leaves no room.*at least"):
        having(module, max_seq_length=least - 2)


def test_a_sentence_transformers_prompt_that_leaves_no_room_is_refused(module):
    having(module, max_seq_length=8)
    with pytest.raises(ValueError, match=r"max_seq_length=8 leaves no room"):
        module.preprocess(["a"], prompt="a prompt that has a good many tokens: ")


def test_a_sentence_transformers_prompt_comes_before_the_template(module, tokenizer):
    having(module, prompt="prompteol")
    whole = 'query: This sentence : "A cat." means in one word:"'
    assert ids(module, "A cat.", prompt="query: ") == tokenizer(whole)["input_ids"]
    having(module, max_seq_length=50)
    kept = tokenizer.decode(ids(module, "A cat " * 100, prompt="query: "))
    assert kept.startswith('query: This sentence : "A cat')
    assert kept.endswith('" means in one word:"')


@pytest.mark.parametrize("prompt", ["no place for it", "", None, 3, ["prompteol"], "{ text }"])
def test_a_prompt_that_is_no_template_is_refused(prompt, module):
    with pytest.raises(ValueError, match=r"prompt="):
        having(module, prompt=prompt)


def test_an_unknown_prompt_lists_the_known_ones(module):
    with pytest.raises(
        ValueError,
        match=r"'sentimnt'.*'none', 'prompteol', 'release-none', 'echo'.*'metaeol'.*Did you mean 'sentiment'",
    ):
        having(module, prompt="sentimnt")


# --- special tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_leading_special_token_is_kept_and_a_trailing_one_is_not(bos, eos, side, with_tokenizer):
    module = with_tokenizer(bos=bos, eos=eos, side=side)
    bare = module.tokenizer("A cat", add_special_tokens=False)["input_ids"]
    start = [1] if bos else []
    assert ids(module, "A cat") == start + bare
    having(module, prompt="{text} END", max_seq_length=12)
    end = module.tokenizer(" END", add_special_tokens=False)["input_ids"]
    long = ids(module, "A cat " * 40)
    assert long[: len(start)] == start
    assert long[-len(end) :] == end
    assert long.count(1) == len(start)
    assert 2 not in long
    assert 8 < len(long) <= 12


def test_padding_is_on_the_tokenizers_own_side(with_tokenizer):
    for side, column in (("left", 0), ("right", -1)):
        module = with_tokenizer(side=side)
        mask = module.preprocess(["a", "a longer text than that"])["attention_mask"]
        assert mask[0, column] == 0
        assert mask[1].all()


def test_the_name_of_a_special_token_in_a_text_is_harmless(module):
    texts = ["<pad>", "<pad><pad> a", "<bos> a <eos>", "a <eos>"]
    found = vectors(module, texts)
    assert found.isfinite().all()
    torch.testing.assert_close(found[3], vectors(module, ["a <eos>"])[0], rtol=0, atol=1e-5)


def test_a_tokenizer_without_a_padding_token_will_do(tmp_path, texts):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    folder = save_model(tmp_path, "olmoe", tokenizer)
    module = SSMoE.from_base(folder, method="moee", calibration="none", progress=False)
    alone = torch.cat([vectors(module, [text]) for text in texts[:9]])
    torch.testing.assert_close(vectors(module, texts[:9]), alone, rtol=0, atol=1e-5)


def test_a_tokenizer_without_any_special_token_will_do(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.bos_token = tokenizer.eos_token = None
    folder = save_model(tmp_path, "olmoe", tokenizer)
    module = SSMoE.from_base(folder, method="moee", calibration="none", progress=False)
    found = vectors(module, ["", "a", "a somewhat longer text"])
    torch.testing.assert_close(found[1], vectors(module, ["a"])[0], rtol=0, atol=1e-5)


# --- odd texts --------------------------------------------------------------------------------------------------------

ODD = {
    "empty": "",
    "space": " ",
    "whitespace": " \t\n\r\u00a0\u2003 ",
    "100,000 characters": "word and " * 11_112,
    "100,000 letters": "a" * 100_000,
    "lone high surrogate": "a\ud800b",
    "lone low surrogate": "\udc00",
    "surrogates in the wrong order": "\udc00\ud800",
    "right to left": "مرحبا بالعالم، שלום עולם",
    "direction marks": "\u202eabc\u202c\u200f",
    "CJK": "東京は今日も晴れです。你好世界 안녕하세요",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🙂",
    "NUL": "a\x00b\x00",
    "only NUL": "\x00",
    "control characters": "\x01\x02\x1b[31m\x7f",
    "combining marks": "e\u0301" * 50 + "\u0300" * 100,
    "not a character": "\uffff\ufffe\U0010ffff",
    "byte order mark": "\ufeffabc",
    "placeholder": "{text}",
    "quotes": "\"'\"'",
}


@pytest.mark.parametrize("prompt", ["none", "prompteol"])
def test_an_odd_text_has_a_finite_vector_that_its_neighbours_do_not_change(prompt, built):
    model = ssmoe_embed.load(built, prompt=prompt, calibration="none", max_seq_length=64, progress=False)
    for name, text in ODD.items():
        alone = model.encode(text, **QUIET)
        assert np.isfinite(alone).all(), name
        assert np.abs(alone).max() > 0, name
        together = model.encode(["a neighbour", text, "another one, quite a bit longer than the first"], **QUIET)
        np.testing.assert_allclose(together[1], alone, rtol=0, atol=1e-5, err_msg=name)


def test_odd_texts_in_one_batch_are_finite_in_every_method(model):
    before = model[0].settings
    try:
        for method in ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden"):
            for combination in ("concat", "sum"):
                having(model[0], method=method, combination=combination)
                assert np.isfinite(model.encode(list(ODD.values()), **QUIET)).all()
    finally:
        model[0].settings = before


@pytest.mark.parametrize("bos", [False, True])
def test_an_empty_text_is_a_token_of_its_own(bos, with_tokenizer):
    module = with_tokenizer(bos=bos)
    assert len(ids(module, "")) == 1
    assert vectors(module, ["", "a"]).isfinite().all()


def test_a_lone_surrogate_reads_as_the_replacement_character(module):
    assert ids(module, "a\ud800b") == ids(module, "a\ufffdb")


def test_an_emoji_written_as_two_surrogates_reads_as_the_emoji(module):
    assert ids(module, "\ud83d\ude42") == ids(module, "🙂")


def test_a_text_of_100_000_characters_is_cut_to_the_limit(model):
    features = model.preprocess(["word and " * 11_112])
    assert features["input_ids"].shape == (1, model.max_seq_length)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=60), min_size=1, max_size=4))
def test_any_texts_have_finite_vectors(model, texts):
    found = model.encode(texts, **QUIET)
    assert found.shape == (len(texts), model.get_embedding_dimension())
    assert np.isfinite(found).all()


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=120), st.integers(40, 60))
def test_no_text_overflows_its_limit_or_loses_the_templates_end(olmoe_module, text, limit):
    having(olmoe_module, prompt="prompteol", max_seq_length=limit)
    kept = ids(olmoe_module, text)
    assert len(kept) <= limit
    assert olmoe_module.tokenizer.decode(kept).endswith('" means in one word:"')


@pytest.fixture(scope="module")
def olmoe_module(olmoe):
    return SSMoE.from_base(olmoe, method="smoe", calibration="none", progress=False)


# --- lists and what is no text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}])
def test_a_list_of_none_is_encoded_as_by_any_sentence_transformer(options, model, stock):
    ours, theirs = (each.encode([], **QUIET, **options) for each in (model, stock))
    assert type(ours) is type(theirs)
    assert len(ours) == len(theirs) == 0


@pytest.fixture(scope="module")
def stock(olmoe):
    """The same base model as a stock sentence-transformers model."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(olmoe))
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")


def test_one_text_gives_one_vector_and_a_list_gives_rows(model):
    size = model.get_embedding_dimension()
    assert model.encode("a text", **QUIET).shape == (size,)
    assert model.encode(["a text"], **QUIET).shape == (1, size)
    assert model.encode(np.array(["a text", "two"]), **QUIET).shape == (2, size)
    assert model.encode(("a text", "two"), **QUIET).shape == (2, size)


def test_the_vectors_come_in_the_order_of_the_texts(model, texts):
    shuffled = [texts[position] for position in np.random.default_rng(0).permutation(len(texts))]
    first, second = model.encode(texts, batch_size=8, **QUIET), model.encode(shuffled, batch_size=8, **QUIET)
    for text, vector in zip(shuffled, second, strict=True):
        np.testing.assert_allclose(vector, first[texts.index(text)], rtol=0, atol=1e-5)


NO_TEXTS = {"None": None, "int": 7, "float": 2.5, "bytes": b"abc", "list": ["a"], "NaN": float("nan")}


@pytest.mark.parametrize("wrong", NO_TEXTS.values(), ids=NO_TEXTS.keys())
def test_what_is_no_text_is_named_by_its_position_in_the_callers_list(wrong, model):
    texts = ["the longest of the texts by far", "b", wrong, "a longer text"]
    with pytest.raises((ValueError, TypeError), match=rf"position 2 of the inputs, got {type(wrong).__name__}"):
        model.encode(texts, **QUIET)


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_also_in_queries_and_documents(method, model):
    with pytest.raises((ValueError, TypeError), match=r"position 1 of the inputs, got NoneType"):
        getattr(model, method)(["a", None], **QUIET)


def test_also_in_an_array_and_a_series_of_objects(model):
    with pytest.raises((ValueError, TypeError), match=r"position 1 of the inputs, got float"):
        model.encode(np.array(["a long text", float("nan"), "b"], dtype=object), **QUIET)


@pytest.mark.parametrize("wrong", [None, 7, 2.5, b"abc"])
def test_a_single_input_that_is_no_text_is_refused_too(wrong, model):
    with pytest.raises((ValueError, TypeError), match=type(wrong).__name__):
        model.encode(wrong, **QUIET)


@pytest.mark.parametrize("wrong", NO_TEXTS.values(), ids=NO_TEXTS.keys())
def test_a_plain_sentence_transformer_refuses_it_too(wrong, built):
    model = SentenceTransformer(str(built), device="cpu")
    with pytest.raises((ValueError, TypeError)) as refusal:
        model.encode(["b", wrong], **QUIET)
    assert type(wrong).__name__ in str(refusal.value)


def test_the_path_or_address_of_a_picture_is_a_text(model, tmp_path, monkeypatch):
    """Its file is not even looked for."""
    (tmp_path / "a.png").touch()
    texts = [str(tmp_path / "a.png"), "https://example.com/a.png", "data:image/png;base64,xx"]
    expected = vectors(model[0], texts)
    monkeypatch.setattr("os.path.isfile", None)
    np.testing.assert_allclose(model.encode(texts, **QUIET), expected, rtol=0, atol=1e-5)


def test_an_error_does_not_drag_a_long_value_along(model):
    with pytest.raises((ValueError, TypeError), match="position 0") as refusal:
        model.encode([["x" * 10_000]], **QUIET)
    assert len(str(refusal.value)) < 400
