"""Filters, hybrid search, snippets and explanations of the semantic index."""

import numpy as np
import pytest
from indexing import best, cosines, ids

import ssmoe_embed
from ssmoe_embed.search import Document, SemanticIndex
from ssmoe_embed.search.keywords import fuse


def test_filters_take_values_lists_and_several_keys(index, model, documents):
    odd = [d for d in documents if d.metadata["parity"] == 1]
    assert ids(index.search("soup", 6, filters={"parity": 1})) == best(model, odd, "soup", 6)
    some = [d for d in odd if {"t0", "t1"} & set(d.metadata["tags"])]
    hits = index.search("soup", 99, filters={"parity": "1", "tags": ["t0", "t1"]})
    assert ids(hits) == best(model, some, "soup", 99)
    assert index.search("soup", filters={"parity": 7}) == []
    with pytest.raises(ValueError, match="'parity'"):
        index.search("soup", filters={"party": 1})


def test_hybrid_search_fuses_the_two_rankings_by_rank(index, model, documents):
    bm25s = pytest.importorskip("bm25s")
    query = "forgot three letters on Monday"
    words = bm25s.tokenize([d.full_text for d in documents], stopwords=None, return_ids=False, show_progress=False)
    reference = bm25s.BM25()
    reference.index(words, show_progress=False)
    [asked] = bm25s.tokenize([query], stopwords=None, return_ids=False, show_progress=False)
    scores = reference.get_scores(asked)
    places, hits = index.search(query, 10, hybrid=True), {}
    for ranking in (
        best(model, documents, query, 100),
        [documents[i].id for i in np.argsort(-scores, kind="stable") if scores[i] > 0],
    ):
        for rank, name in enumerate(ranking, start=1):
            hits[name] = hits.get(name, 0) + 1 / (60 + rank)
    # documents whose BM25 scores tie may swap ranks, so scores are compared to within one rank
    np.testing.assert_allclose([hit.score for hit in places], sorted(hits.values())[::-1][:10], rtol=0.02)
    exact = dict(zip((d.id for d in documents), cosines(model, documents, query), strict=True))
    for hit in places:
        assert hit.similarity == pytest.approx(exact[hit.document.id], abs=1e-6)
    assert ids(places)[0] in best(model, documents, query, 3)
    filtered = index.search(query, 10, hybrid=True, filters={"parity": 0})
    assert filtered
    assert all(hit.document.metadata["parity"] == 0 for hit in filtered)
    assert (index.folder / f"keywords-{index.info()['generation']}").is_dir()
    again = SemanticIndex.open(index.folder, model)
    assert ids(again.search(query, 10, hybrid=True)) == ids(places)
    assert index.search("zzzzqqq", 3, hybrid=True), "no word is known, the meaning still is"


def test_fusion_is_the_sum_of_reciprocal_ranks():
    assert fuse([5, 3], [3]) == [(3, 1 / 62 + 1 / 61), (5, 1 / 61)]


def test_the_snippet_marks_the_sentence_nearest_to_the_query(loaded, tmp_path):
    sentences = ["A cat slept.", "Use git reset to undo the last commit!", "The soup was cold?", "x " * 200 + "."]
    index = SemanticIndex.create(tmp_path / "i", loaded)
    index.add([Document("a", " ".join(sentences)), Document("b", "only one")], progress=False)
    hits = {hit.document.id: hit for hit in index.search("undo a commit", snippets=True)}
    query = loaded.encode("undo a commit", normalize_embeddings=True)
    clean = [sentence.strip() for sentence in sentences]
    expected = clean[int(np.argmax(loaded.encode(clean, normalize_embeddings=True) @ query))]
    assert hits["a"].snippet.sentence.split() == expected.split()
    assert hits["a"].snippet.text in hits["a"].document.text
    assert hits["b"].snippet.sentence == "only one"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"method": "ssmoe"}, ["hidden", "routing of layer"]),
        ({"method": "moee", "combination": "sum", "routing_weight": 0.5}, ["hidden", "routing of layer"]),
        ({"method": "router"}, ["routing of layer"]),
        ({"method": "smoe"}, ["hidden"]),
    ],
)
def test_the_contributions_of_the_blocks_add_up_to_the_score(built, tmp_path, texts, settings, names):
    model = ssmoe_embed.load(built, progress=False, **settings)
    index = SemanticIndex.create(tmp_path / "i", model)
    index.add([Document(str(i), text) for i, text in enumerate(texts[:12])], progress=False)
    hit = index.search("a soup on Monday", 3)[2]
    explanation = index.explain("a soup on Monday", hit.document.id)
    assert explanation.score == hit.score
    assert sum(part.score for part in explanation.contributions) == pytest.approx(hit.score, abs=1e-12)
    assert sum(part.size for part in explanation.contributions) == model.get_embedding_dimension()
    blocks = [part.block for part in explanation.contributions]
    assert all(any(block.startswith(name) for name in names) for block in blocks)
    assert len(set(blocks)) == len(blocks)
    query, document = (
        model.encode(text, normalize_embeddings=True) for text in ("a soup on Monday", index[hit.document.id].text)
    )
    size = explanation.contributions[0].size
    assert explanation.contributions[0].score == pytest.approx(float(query[:size] @ document[:size]), abs=1e-5)


def test_only_vectors_with_blocks_can_be_explained(index):
    with pytest.raises(ValueError, match="blocks"):
        index.explain("soup", "d1")
    with pytest.raises(KeyError, match="nothing"):
        index.explain("soup", "nothing")
