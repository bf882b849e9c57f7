import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch.utils.data import DataLoader

from ssmoe_embed.evaluation import Corruption, corrupt, ladder
from ssmoe_embed.evaluation.tasks.corruption import CLEAN, LADDER_RATES, Tally, is_stopword

WORDS = st.sampled_from(
    ["the", "of", "don't", "cat", "well-kept", "Straße", "C++", "नमस्ते", "東京", "42", "—", "(ox)", "!?"]
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=40).map(" ".join))
NAMES = st.builds(
    Corruption,
    operation=st.sampled_from(["replace", "insert"]),
    rate=st.floats(0, 1),
    token=st.text(min_size=1, max_size=5).filter(lambda t: not any(c.isspace() for c in t)),
    seed=st.integers(-5, 10**12),
    minimum=st.integers(0, 9),
    keep_stopwords=st.booleans(),
    train_split=st.booleans(),
)
TITLE = "How do people undo the last commit without losing work?"


def content_words(text):
    """Words of a text made of plain words, less the stop words."""
    return [word for word in text.split() if word.strip("?!.,()").lower() not in ENGLISH_STOP_WORDS]


@settings(deadline=None, max_examples=200)
@given(TEXTS, NAMES)
def test_a_text_is_corrupted_in_the_same_way_every_time(text, corruption):
    again = Corruption.parse(corruption.name)
    assert again == corruption
    assert corruption.apply(text) == again.apply(text)


@settings(deadline=None, max_examples=100)
@given(st.lists(WORDS, min_size=1, max_size=60).map(" ".join), st.floats(0, 1), st.integers(0, 4), st.integers(0, 3))
def test_as_many_words_are_replaced_as_rate_and_minimum_say_if_there_are_as_many_to_replace(text, rate, minimum, seed):
    corruption = Corruption("replace", rate, "XYZZY", seed, minimum)
    words = [word for word in text.split() if any(c.isalnum() for c in word)]
    free = [word for word in words if word not in {"the", "of", "don't"}]
    wanted = max(int(rate * len(words)), minimum)
    result = corruption.apply(text).split()
    replaced = [(old, new) for old, new in zip(text.split(), result, strict=True) if old != new]
    assert len(replaced) == min(wanted, len(free))
    assert all("XYZZY" in new and old not in {"the", "of", "don't"} for old, new in replaced)


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.floats(0, 3), st.integers(0, 4), st.integers(0, 3))
def test_insert_adds_exactly_as_many_tokens_and_changes_nothing_else(text, rate, minimum, seed):
    corruption = Corruption("insert", rate, "XYZZY", seed, minimum)
    tally = corruption.report([text])
    result = corruption.apply(text).split()
    expected = max(int(rate * tally.words), minimum) if tally.words else 0
    assert result.count("XYZZY") == expected == tally.tokens
    assert [word for word in result if word != "XYZZY"] == text.split()


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["replace", "insert"]))
def test_rate_zero_without_a_minimum_changes_nothing(text, operation):
    assert corrupt(text, operation=operation, rate=0, minimum=0) == text


@settings(deadline=None, max_examples=50)
@given(st.lists(TEXTS, max_size=6), st.randoms())
def test_neither_order_nor_batches_matter(texts, rng):
    corruption = Corruption("replace", 0.3)
    rows = [{"text": text, "title": text[::-1], "number": i} for i, text in enumerate(texts)]
    shuffled = rng.sample(rows, len(rows))
    for batch in corruption.wrap(DataLoader(shuffled, batch_size=2)) if rows else ():
        for text, title, number in zip(batch["text"], batch["title"], batch["number"].tolist(), strict=True):
            assert text == corruption.apply(texts[number])
            assert title == corruption.apply(texts[number][::-1])


@pytest.mark.parametrize("text", ["", "   ", "—", "?!", "the of and"])
def test_what_has_no_word_to_replace_stays(text):
    assert corrupt(text, rate=1.0) == text


@pytest.mark.parametrize("text", ["", " \n ", "?!"])
def test_nothing_is_inserted_where_there_is_no_word(text):
    assert corrupt(text, operation="insert", rate=1.0) == text


def test_everything_but_the_words_stays():
    text = '"Cats," she\tsaid;\n  (dogs)  bark!'
    assert corrupt(text, rate=1.0) == '"AAA," she\tAAA;\n  (AAA)  AAA!'
    assert corrupt(text, rate=1.0, keep_stopwords=False) == '"AAA," AAA\tAAA;\n  (AAA)  AAA!'


def test_a_higher_rate_replaces_the_same_words_and_more():
    text = " ".join(f"word{i}" for i in range(50))
    replaced = [
        {i for i, word in enumerate(corrupt(text, rate=rate).split()) if word == "AAA"} for rate in (0.1, 0.3, 0.7)
    ]
    assert [len(one) for one in replaced] == [5, 15, 35]
    assert replaced[0] < replaced[1] < replaced[2]


def test_another_seed_and_another_text_choose_other_words():
    text = " ".join(f"word{i}" for i in range(40))
    first = corrupt(text, rate=0.2).split()
    assert first != corrupt(text, rate=0.2, seed=1).split()
    assert first[:40] != corrupt(f"{text} end", rate=0.2).split()[:40]


def test_the_places_are_spread_evenly():
    """Over many texts every word of a text is replaced about as often as any other."""
    counts = np.zeros(10)
    for i in range(2000):
        words = corrupt(f"a1 a2 a3 a4 a5 a6 a7 a8 a9 n{i}", rate=0.2).split()
        counts += [word == "AAA" for word in words]
    assert counts.sum() == 4000
    assert np.all(np.abs(counts - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8))


def test_the_realised_rate_is_counted_in_words():
    texts = ["red green blue black", "", "the of", " ".join(["word"] * 200)]
    tally = Corruption("replace", 0.015).report(texts)
    assert (tally.texts, tally.touched, tally.words, tally.tokens) == (4, 2, 206, 1 + 3)
    assert tally.realised == pytest.approx(4 / 206)
    assert "nominal rate 0.015, realised 0.0194" in str(tally)
    assert Tally(0.1).realised == 0


def test_a_wrapped_data_loader_counts_and_is_the_same_object():
    rows = [{"id": str(i), "text": TITLE, "query": TITLE, "body": TITLE, "label": 3} for i in range(4)]
    loader, tally = DataLoader(rows, batch_size=3), Tally(0.5)
    assert Corruption("insert", 0.1).wrap(loader) is loader
    wrapped = Corruption("replace", 0.5).wrap(loader, tally)  # takes the first one's place
    batches = list(wrapped)
    expected = corrupt(TITLE, rate=0.5)
    assert expected.count("AAA") == 5 == len(content_words(TITLE))
    for batch in batches:
        assert set(batch["text"]) == set(batch["query"]) == set(batch["body"]) == {expected}
        assert set(batch["label"].tolist()) == {3}
    assert [identifier for batch in batches for identifier in batch["id"]] == list("0123")
    assert tally.texts == 12


@settings(deadline=None)
@given(NAMES, NAMES)
def test_different_corruptions_have_different_names_that_any_file_system_takes(first, second):
    assert (first.name == second.name) == (first == second)
    assert not set(first.name) & set('/\\:*?"<>| \x00')
    assert first.name != CLEAN


def test_names_of_common_corruptions_are_short():
    assert Corruption().name == "replace@0.015"
    assert Corruption("insert", 1).name == "insert@1"
    assert Corruption("insert", 0.2, "BBB", 3).name == "insert@0.2,token=BBB,seed=3"
    assert Corruption.parse("insert") == Corruption("insert")
    assert Corruption.parse("clean") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("replce@0.1", "Did you mean 'replace@0.1'"),
        ("replace@often", "cannot be read; write OPERATION@RATE"),
        ("replace@0.1,colour=red", "cannot be read"),
        ("replace@0.1,seed=x", "cannot be read"),
        ("replace@1.5", "not a share of words"),
        ("replace@nan", "not a share of words"),
        ("insert@0.1,minimum=-1", "minimum=-1 is negative"),
        ("insert@0.1,token=a%20b", "holds white space"),
    ],
)
def test_a_name_that_cannot_be_meant_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Corruption.parse(name)


def test_the_ladder_rises_for_both_operations():
    steps = ladder()
    assert [step.rate for step in steps] == list(LADDER_RATES) * 2
    assert len({step.name for step in steps}) == len(steps)
    assert [step.operation for step in ladder(["insert"], [0.5, 0.1], seed=4)] == ["insert"] * 2
    assert {step.seed for step in ladder(seed=4)} == {4}


def test_texts_for_training_are_corrupted_unless_switched_off():
    assert Corruption().covers("train", ["test"])
    assert not Corruption(train_split=False).covers("train", ["test"])
    assert Corruption(train_split=False).covers("test", ["test"])
    assert Corruption(train_split=False).covers("train", ["train"])  # a task evaluated on its training split


@pytest.mark.parametrize("word", ["The", "it's", "don't", "you’re", "isn't", "cannot"])
def test_contractions_of_stop_words_are_stop_words(word):
    assert is_stopword(word)


@pytest.mark.parametrize("word", ["cat", "O'Neill", "cat's", "commit"])
def test_other_words_are_not(word):
    assert not is_stopword(word)
