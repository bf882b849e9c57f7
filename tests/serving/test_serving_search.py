"""Search over HTTP: the same hits as in Python, and refusals that say why."""

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")
pytest.importorskip("faiss", reason="an index needs the extra `faiss`")

from serving import serving

from ssmoe_embed.data import Document
from ssmoe_embed.search.hybrid import SearchMode
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.serving.app import create_app


def test_hits_are_those_of_the_index_with_the_best_sentence_marked(client, index):
    answer = client.get("/api/search", params={"q": "hello world", "top": 4}).json()
    hits = index.search("hello world", 4, snippets=True)
    assert [hit["id"] for hit in answer["hits"]] == [hit.document.id for hit in hits]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in hits], atol=1e-5)
    for shown, hit in zip(answer["hits"], hits, strict=True):
        assert "".join(part["text"] for part in shown["snippet"]) == hit.snippet.text
        assert [part["text"] for part in shown["snippet"] if part["best"]] == [hit.snippet.sentence]
        assert (shown["title"], shown["source"]) == (hit.document.title, hit.document.source)
    assert answer["documents"] == len(index)


def test_hits_can_be_had_before_their_best_sentences(client, index, monkeypatch):
    asked = {"q": "hello world", "top": 4}
    marked = client.get("/api/search", params=asked).json()["hits"]
    monkeypatch.setattr("ssmoe_embed.search.index.with_snippets", None)  # would be called to find them
    plain = client.get("/api/search", params=asked | {"snippets": False}).json()["hits"]
    assert [hit["id"] for hit in plain] == [hit["id"] for hit in marked]
    for hit in plain:
        assert hit["snippet"] == [{"text": index[hit["id"]].text, "best": False}]


def test_filters_and_modes_reach_the_index(client, index):
    asked = {"q": "hello", "top": 50, "filter": ["parity=odd"]}
    assert {hit["metadata"]["parity"] for hit in client.get("/api/search", params=asked).json()["hits"]} == {"odd"}
    for mode in SearchMode:
        shown = client.get("/api/search", params={"q": "soup", "top": 5, "mode": mode.value}).json()["hits"]
        expected = index.search("soup", 5, mode=mode)
        names = ("score", "similarity", "words", "weak")
        assert [[hit["id"], *(hit[name] for name in names)] for hit in shown] == [
            [hit.document.id, *(getattr(hit, name) for name in names)] for hit in expected
        ]
    several = asked | {"filter": ["number=3..4", "parity=odd"]}
    assert {hit["id"] for hit in client.get("/api/search", params=several).json()["hits"]} == {"d3"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "q: "),
        ({"q": "  "}, "q is empty"),
        ({"q": "x" * 101}, "at most 100"),
        ({"q": "x", "top": 0}, "outside 1 to 50"),
        ({"q": "x", "top": "many"}, "top: "),
        ({"q": "x", "filter": "parity"}, "key=value"),
        ({"q": "x", "filter": "color=red"}, "'color'"),
        ({"q": "x", "mode": "both"}, "'hybrid'"),
    ],
)
def test_a_senseless_search_is_refused(client, asked, message):
    response = client.get("/api/search", params=asked)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_document_is_found_by_id(client, index):
    shown = client.get("/api/document", params={"id": "d3"}).json()
    assert (shown["text"], shown["metadata"]) == (index["d3"].text, dict(index["d3"].metadata))
    assert client.get("/api/document", params={"id": "nothing"}).status_code == 404


def test_a_score_is_explained_block_by_block(client, index):
    shown = client.get("/api/explain", params={"q": "soup", "id": "d3"}).json()
    expected = index.explain("soup", "d3")
    assert [(block["name"], block["score"]) for block in shown["blocks"]] == [
        (part.block, pytest.approx(part.score, abs=1e-5)) for part in expected.contributions
    ]
    assert shown["score"] == pytest.approx(expected.score, abs=1e-4)
    assert client.get("/api/explain", params={"q": "soup", "id": "nothing"}).status_code == 404
    assert client.get("/api/explain", params={"q": " ", "id": "d3"}).status_code == 400


def test_a_change_of_the_index_is_seen_by_the_next_search(model, tmp_path):
    index = SemanticIndex.create(tmp_path / "changing", model)
    index.add([Document("a", "the cat")], progress=False)
    other = SemanticIndex.open(tmp_path / "changing", model)
    with serving(create_app(model, name="x", corpus=index)) as client:
        other.add([Document("b", "a soup")], progress=False)
        assert {hit["id"] for hit in client.get("/api/search", params={"q": "soup"}).json()["hits"]} == {"a", "b"}
