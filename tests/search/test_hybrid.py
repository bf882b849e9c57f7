"""Search by words, and its fusion with the search by meaning, compared with formulas worked out here."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from indexing import best, cosines, ids, static_model, vectors

from ssmoe_embed.search import Document, SearchMode, SemanticIndex, parse_filters

QUERY = "forgot three letters on Monday"
K1, B, TITLE = 1.2, 0.75, 3


def words_of(text):
    return re.findall(r"\w+", text.lower())


def shares(documents, query):
    """BM25 as FTS5's documentation gives it, with titles three times as heavy, over the most that it can be."""
    held = [Counter(words_of(d.title or "")) for d in documents], [Counter(words_of(d.text)) for d in documents]
    lengths = [title.total() + text.total() for title, text in zip(*held, strict=True)]
    mean, count = sum(lengths) / len(documents), len(documents)
    asked = [word for word in dict.fromkeys(words_of(query)) if len(word) > 1]
    found = {word: sum(bool(a[word] or b[word]) for a, b in zip(*held, strict=True)) for word in asked}
    weight = {word: max(1e-6, math.log((count - n + 0.5) / (n + 0.5))) for word, n in found.items() if 2 * n < count}
    scores = []
    for title, text, length in zip(*held, lengths, strict=True):
        often = {word: TITLE * title[word] + text[word] for word in weight}
        part = [weight[w] * f * (K1 + 1) / (f + K1 * (1 - B + B * length / mean)) for w, f in often.items()]
        scores.append(sum(part) / ((K1 + 1) * sum(weight.values())))
    return dict(zip((d.id for d in documents), scores, strict=True))


def test_words_are_ranked_by_their_share_of_what_bm25_could_give(index, documents):
    expected = shares(documents, QUERY)
    hits = index.search(QUERY, 12, mode="words")
    ranked = sorted((score for score in expected.values() if score > 0), reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], ranked[:12], rtol=1e-6)
    assert all(hit.words == hit.score == pytest.approx(expected[hit.document.id]) for hit in hits)
    assert all(hit.similarity is None for hit in hits)
    assert 0 < max(ranked) < 1


def test_words_need_no_model_and_take_any_query(index):
    bare = SemanticIndex.open(index.folder)
    assert bare.search("the old gate", 3, mode="words") == index.search("the old gate", 3, mode="words")
    for query in (
        "zzzzqqq",
        "\"' OR * NEAR(",
        "NOT",
        "-",
        "!?",
        "\0",
        "a",
        "x " * 5000,
        "half \ud800 a pair",
        "東京は晴れです",
    ):
        assert len(bare.search(query, 3, mode="words")) <= 3
    assert bare.search("東京は晴れです", 1, mode="words")[0].document.text == "東京は晴れです"
    assert bare.search("CAFE", 1, mode="words")[0].document.text.startswith("café"), "case and accents mean nothing"


def test_hybrid_scores_are_deviations_above_the_usual_similarity_plus_the_share_of_words(index, model, documents):
    similar = cosines(model, documents, QUERY)
    above = (similar - similar.mean()) / similar.std()
    words = shares(documents, QUERY)
    expected = {d.id: above[row] / 3.5 + words[d.id] for row, d in enumerate(documents)}
    hits = index.search(QUERY, 10)
    assert ids(hits) == sorted(expected, key=lambda name: -expected[name])[:10]
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.document.id], abs=1e-4)
        assert hit.similarity == pytest.approx(similar[int(hit.document.id[1:])], abs=1e-6)
        assert hit.words == pytest.approx(words[hit.document.id])


def test_a_query_without_a_known_word_is_ranked_by_meaning(index, model, documents):
    assert ids(index.search("zzzz qqqq", 5)) == best(model, documents, "zzzz qqqq", 5)


def test_every_mode_keeps_to_the_filters(index):
    for mode in SearchMode:
        hits = index.search(QUERY, 50, filters={"parity": 0}, mode=mode)
        assert hits
        assert all(hit.document.metadata["parity"] == 0 for hit in hits)
    with pytest.raises(ValueError, match="'hybrid', 'vectors', 'words'"):
        index.search(QUERY, mode="word")


def test_words_follow_every_change_and_old_readers_keep_theirs(tmp_path):
    def found(index):
        return ids(index.search("green", 9, mode="words"))

    index = SemanticIndex.create(tmp_path / "i", static_model())
    given = [Document(f"d{i}", f"a {'green' if i < 2 else 'red'} thing {i}") for i in range(30)]
    index.add_vectors(given, vectors(given))
    reader = SemanticIndex.open(index.folder)
    assert found(index) == ["d0", "d1"]
    index.delete(["d0"])
    changed = [Document("d1", "a blue thing"), Document("d9", "now green"), Document("n", "sky", title="Green")]
    index.add_vectors(changed, vectors(changed))
    assert sorted(found(index)) == ["d9", "n"]
    assert found(reader) == ["d0", "d1"]
    index.rebuild(progress=False)
    assert sorted(found(index)) == ["d9", "n"]
    fresh = SemanticIndex.create(tmp_path / "fresh", static_model())
    fresh.add_vectors(index.documents(), index.vectors())
    assert index.search("green", 9, mode="words") == fresh.search("green", 9, mode="words")


def test_the_commonest_words_say_nothing_in_a_large_corpus_and_something_in_a_small_one(tmp_path):
    index = SemanticIndex.create(tmp_path / "i", static_model())
    few = [Document("a", "the soup"), Document("b", "the gate")]
    index.add_vectors(few, vectors(few))
    assert ids(index.search("the soup", 9, mode="words")) == ["a", "b"]
    many = [Document(f"d{i}", f"the thing {i}") for i in range(30)]
    index.add_vectors(many, vectors(many))
    assert index.search("the the", 9, mode="words") == []
    assert ids(index.search("the soup", 9, mode="words")) == ["a"]


def test_a_weak_match_says_so(index, documents):
    """As near as the nearest of so many would be to anything, and none of the words."""
    assert not index.search(documents[3].text, 1)[0].weak
    assert index.search("zzzz qqqq", 1, mode="words") == []
    for mode in SearchMode:
        hits = index.search("the cook", 40, mode=mode)
        flags = [hit.weak for hit in hits]
        assert flags == sorted(flags), "the better ones are not weak"
    rng = np.random.default_rng(5)
    noise = [hits[0].weak for hits in index.search_vectors(rng.standard_normal((50, 24)), 1)]
    assert np.mean(noise) > 0.8


def test_filters_take_patterns_ranges_and_what_a_hit_prints(tmp_path):
    index = SemanticIndex.create(tmp_path / "i", static_model())
    given = [
        Document(
            f"d{i}", f"text {i}", {"year": 1990 + i, "path": f"notes/{'a' if i % 2 else '[b]*'}/{i}.md", "n": i / 2}
        )
        for i in range(12)
    ]
    given.append(Document("s", "text s", {"year": "2024-03-01", "n": "1.0", "path": "x=y"}, source="notes/q?.md:1-2"))
    index.add_vectors(given, vectors(given))

    def passing(*conditions):
        return index.ids(parse_filters(conditions))

    assert passing("path=notes/a/*") == [f"d{i}" for i in range(1, 12, 2)]
    assert passing("path=notes/[b]*") == [f"d{i}" for i in range(0, 12, 2)], "brackets are only themselves"
    assert passing("path=*/1?.md") == ["d10", "d11"]
    assert passing("year>=1995", "year < 1997") == passing("year=1995..1996") == ["d5", "d6"]
    assert passing("year>9") == [f"d{i}" for i in range(12)], "numbers are not compared as text"
    assert passing("year=2024-01..2024-12") == ["s"]
    assert passing("n=1") == passing("n=1.0") == ["d2", "s"]
    assert index.ids({"n": 1}) == index.ids({"n": 1.0}) == ["d2"]
    assert passing("id=d3", "id=d1*") == ["d1", "d3", "d10", "d11"]
    assert passing("path=x=y") == ["s"]
    for document in index.documents():
        assert document.id in passing(f"path={document.metadata['path']}")
        assert passing(f"id={document.id}") == [document.id]
        if document.source:
            assert passing(f"source={document.source}") == [document.id]
    assert index.ids({"path": "notes/*"}) == [], "a plain value is compared exactly"
    for wrong in ("year", "=3", " = 3", ""):
        with pytest.raises(ValueError, match="key=value"):
            passing(wrong)
    with pytest.raises(ValueError, match="'year'"):
        passing("yaer=1")
