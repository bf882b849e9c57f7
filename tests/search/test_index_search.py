"""Filters, hybrid search, snippets and explanations of the semantic index."""

import numpy as np
import pytest
from indexing import best, ids

import ssmoe_embed
from ssmoe_embed.search import Document, SemanticIndex
from ssmoe_embed.search.hits import Hit, Snippet


def test_filters_take_values_lists_and_several_keys(index, model, documents):
    odd = [d for d in documents if d.metadata["parity"] == 1]
    assert ids(index.search("soup", 6, filters={"parity": 1}, mode="vectors")) == best(model, odd, "soup", 6)
    some = [d for d in odd if {"t0", "t1"} & set(d.metadata["tags"])]
    hits = index.search("soup", 99, filters={"parity": "1", "tags": ["t0", "t1"]}, mode="vectors")
    assert ids(hits) == best(model, some, "soup", 99)
    assert index.search("soup", filters={"parity": 7}) == []
    with pytest.raises(ValueError, match="'parity'"):
        index.search("soup", filters={"party": 1})


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
    ("text", "plain"),
    [
        ('See [the docs](http://x.y/z) and ![a cat](cat.png "Cat").', "See the docs and a cat."),
        ("## Powers\n**Not `2 ** 3`**, but x**2**3.", "Powers\nNot 2 ** 3, but x**2**3."),
        ("f(**a, **b), f(**a,**b), a[0](1)", "f(**a, **b), f(**a,**b), a[0](1)"),
        ("```python\nf(**x) # `a`\n## b\n```\nafter `it", "f(**x) # `a`\n## b\nafter it"),
    ],
)
def test_a_hit_is_shown_without_the_marks_of_markdown_and_with_those_of_code(text, plain):
    document = Document("a", text)
    assert Hit(document, 1.0).shown() == [(plain, False)]
    for start in range(len(text)):  # wherever the best sentence begins
        shown = Hit(document, 1.0, snippet=Snippet(text, start, max(start, len(text) - 2))).shown()
        assert "".join(part for part, _ in shown) == plain


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
    hit = index.search("a soup on Monday", 3, mode="vectors")[2]
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
