"""Searching a corpus: exact, cached for one model only, clear about bad files."""

import json

import numpy as np
import pytest

import ssmoe_embed
from ssmoe_embed.data import Document
from ssmoe_embed.search.corpus import read_corpus
from ssmoe_embed.search.exact import CorpusSearch

DOCUMENTS = [
    Document(str(i), f"title {i}", text, "", "") for i, text in enumerate(["the cat", "a soup", "git reset", "x"])
]


def test_hits_are_the_nearest_by_cosine(loaded, tmp_path):
    search = CorpusSearch(loaded, DOCUMENTS, cache=tmp_path, progress=False)
    hits = search.search("undo a commit", top=3)
    vectors = loaded.encode([f"{d.title}. {d.text}" for d in DOCUMENTS], normalize_embeddings=True)
    query = loaded.encode("undo a commit", normalize_embeddings=True)
    order = np.argsort(-(vectors @ query))[:3]
    assert [hit.document for hit in hits] == [DOCUMENTS[i] for i in order]
    np.testing.assert_allclose([hit.score for hit in hits], (vectors @ query)[order], atol=1e-5)


def test_vectors_are_encoded_once_and_never_taken_from_another_model(built, tmp_path, monkeypatch):
    model = ssmoe_embed.load(built, progress=False)
    first = CorpusSearch(model, DOCUMENTS, cache=tmp_path, progress=False).search("cat")
    encoded = []
    original = type(model).encode

    def counting(self, inputs, *args, **kwargs):
        encoded.append(inputs)
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", counting)
    again = CorpusSearch(model, DOCUMENTS, cache=tmp_path, progress=False).search("cat")
    assert again == first
    assert not any(isinstance(inputs, list) for inputs in encoded), "the documents were encoded again"
    other = ssmoe_embed.load(built, progress=False, alpha=0.0, calibration="none")
    CorpusSearch(other, DOCUMENTS, cache=tmp_path, progress=False)
    assert any(isinstance(inputs, list) for inputs in encoded), "another model's vectors were used"


def test_a_broken_cache_is_made_anew(loaded, tmp_path):
    first = CorpusSearch(loaded, DOCUMENTS, cache=tmp_path, progress=False).search("cat")
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert CorpusSearch(loaded, DOCUMENTS, cache=tmp_path, progress=False).search("cat") == first


@pytest.mark.parametrize(("query", "top", "message"), [("  ", 1, "empty"), ("x", 0, "top=0")])
def test_a_senseless_search_is_refused(loaded, tmp_path, query, top, message):
    with pytest.raises(ValueError, match=message):
        CorpusSearch(loaded, DOCUMENTS, cache=tmp_path, progress=False).search(query, top)


def test_a_corpus_is_read_from_lines_or_json(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two \n")
    assert [document.text for document in read_corpus(tmp_path / "a.txt")] == ["one", "two"]
    records = [{"text": "one", "title": "t", "id": 7}, {"text": "two\u2028lines \x85 of text"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
    documents = read_corpus(tmp_path / "a.jsonl")
    assert documents[1].text == records[1]["text"]
    assert (documents[0].id, documents[0].title, documents[0].text) == ("7", "t", "one")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "holds no document"),
        ("a.jsonl", '{"text": "x"}\n{"text"', r"a\.jsonl:2 is not valid JSON"),
        ("a.jsonl", '{"text": 3}', r"a\.jsonl:1 is not an object"),
    ],
)
def test_a_bad_corpus_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_corpus(tmp_path / "nothing.txt")
