"""Corpora without an index of one's own: encoded once, by one model only, and searched as any other."""

import shutil

import numpy as np
import pytest
from indexing import best, ids

import ssmoe_embed
from ssmoe_embed.data import search_corpus
from ssmoe_embed.search import SemanticIndex, read_documents
from ssmoe_embed.search.corpora import BUNDLED, bundled_index, corpus_index, write_bundled_vectors

LINES = ["the cat", "a soup", "git reset", "x"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


@pytest.fixture
def encoded(monkeypatch):
    """The lists of texts that a model of the package encoded."""
    given = []
    original = ssmoe_embed.EmbeddingModel.encode

    def counting(self, inputs, *args, **kwargs):
        given.extend([] if isinstance(inputs, str) else inputs)
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(ssmoe_embed.EmbeddingModel, "encode", counting)
    return given


def test_hits_are_those_of_an_index_of_the_same_documents(loaded, file, tmp_path):
    made = corpus_index(loaded, read_documents(file), cache=tmp_path / "cache", progress=False)
    assert ids(made.search("undo a commit", 3, mode="vectors")) == best(
        loaded, list(read_documents(file)), "undo a commit", 3
    )
    assert made.name == "lines"
    own = SemanticIndex.create(tmp_path / "own", loaded)
    own.add(read_documents(file), progress=False)
    assert made.search("the cat and a soup") == own.search("the cat and a soup")


def test_texts_are_encoded_once_whatever_is_added_and_never_taken_from_another_model(built, file, tmp_path, encoded):
    def open_corpus(**settings):
        encoded.clear()
        model = ssmoe_embed.load(built, progress=False, **settings)
        return corpus_index(model, read_documents(file), cache=tmp_path / "cache", progress=False)

    first = open_corpus().search("cat", mode="vectors")
    assert set(LINES) <= set(encoded)
    generation = open_corpus().info()["generation"]
    assert not set(LINES) & set(encoded), "the documents were encoded again"
    file.write_text("\n".join(["a new line", *LINES[:2]]), encoding="utf-8")
    changed = open_corpus()
    assert set(encoded) & {"a new line", *LINES} == {"a new line"}
    assert {document.text for document in changed.documents()} == {"a new line", *LINES[:2]}
    assert changed.info()["generation"] == generation + 1, "an unchanged corpus is not written again"
    open_corpus(alpha=0.0, calibration="none")
    assert {"a new line", *LINES[:2]} <= set(encoded), "another model's vectors were used"
    file.write_text("\n".join(LINES), encoding="utf-8")
    assert open_corpus().search("cat", mode="vectors") == first


def test_a_damaged_cache_and_one_that_cannot_be_written_to_are_no_hindrance(loaded, file, tmp_path):
    def texts(cache):
        made = corpus_index(loaded, read_documents(file), cache=cache, progress=False)
        return [hit.document.text for hit in made.search("cat")]

    expected = texts(tmp_path / "cache")
    [store] = (tmp_path / "cache").rglob("store-*.sqlite")
    store.write_bytes(store.read_bytes()[:50])
    assert texts(tmp_path / "cache") == expected
    (tmp_path / "no-folder").write_text("a file", encoding="utf-8")
    assert texts(tmp_path / "no-folder") == expected


def test_the_bundled_corpus_is_searched_with_its_licence_as_metadata(monkeypatch, tmp_path, encoded):
    documents = search_corpus()
    monkeypatch.setattr("ssmoe_embed.search.corpora.search_corpus", lambda: documents[:30])
    monkeypatch.setattr("ssmoe_embed.search.corpora.search_folder", lambda: tmp_path)
    tiny = ssmoe_embed.load(progress=False)
    assert write_bundled_vectors(tiny, tmp_path).parent == tmp_path
    encoded.clear()
    index = bundled_index(tiny, cache=tmp_path / "cache", progress=False)
    assert len(encoded) < 10, "the vectors that come with the package were not used"
    assert index.name == BUNDLED
    assert index.documents() == documents[:30]
    full = [document.full_text for document in documents[:3]]
    np.testing.assert_allclose(index.vectors(slice(0, 3)), tiny.encode(full, normalize_embeddings=True), atol=1e-4)
    assert index.ids({"license": "Apache-2.0", "source": "ssmoe_embed"}) == [document.id for document in documents[:30]]
    [vectors] = tmp_path.glob("*.safetensors")
    vectors.unlink()
    shutil.rmtree(tmp_path / "cache")
    again = bundled_index(tiny, cache=tmp_path / "cache", progress=False)
    np.testing.assert_allclose(again.vectors(), index.vectors(), atol=1e-4)


def test_a_broken_corpus_leaves_what_was_cached(loaded, file, tmp_path):
    made = corpus_index(loaded, read_documents(file), cache=tmp_path / "cache", progress=False)
    file.write_bytes(b"the cat\nbad \xff line\n")
    with pytest.raises(ValueError, match=r"lines\.txt:2 has bytes"):
        corpus_index(loaded, read_documents(file), cache=tmp_path / "cache", progress=False)
    assert len(SemanticIndex.open(made.folder)) == len(LINES)
