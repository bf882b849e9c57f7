"""SemanticIndex: what it finds, counts and refuses, compared with plain recomputation."""

import json

import numpy as np
import pytest
from indexing import best, cosines, ids, static_model

import ssmoe_embed
from ssmoe_embed.search import AddCounts, Document, SemanticIndex, WrongModelError


def test_hits_are_the_nearest_by_cosine(index, model, documents):
    hits = index.search("my neighbour made a soup", 7, mode="vectors")
    assert ids(hits) == best(model, documents, "my neighbour made a soup", 7)
    expected = np.sort(cosines(model, documents, "my neighbour made a soup"))[::-1][:7]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-6)
    assert all(hit.document == documents[int(hit.document.id[1:])] for hit in hits)
    assert index.search_many(["soup", "gate"], 2, mode="vectors") == [
        index.search("soup", 2, mode="vectors"),
        index.search("gate", 2, mode="vectors"),
    ]


def test_a_reopened_index_has_the_same_documents_vectors_and_hits(index, model, documents):
    again = SemanticIndex.open(index.folder, model)
    assert len(again) == len(documents)
    assert again.documents() == documents
    assert again.documents(3, 2) == documents[3:5]
    assert again["d3"] == documents[3]
    assert "d3" in again
    assert "nothing" not in again
    full = [d.full_text for d in documents]
    np.testing.assert_allclose(again.vectors(), model.encode(full, normalize_embeddings=True), atol=1e-6)
    np.testing.assert_array_equal(again.vectors(["d5", "d1"]), again.vectors()[[5, 1]])
    np.testing.assert_array_equal(again.vectors(slice(2, 4)), again.vectors()[2:4])
    with pytest.raises(KeyError, match="nothing"):
        again.vectors(["d1", "nothing"])
    assert again.search("soup", 5, mode="vectors") == index.search("soup", 5, mode="vectors")
    assert again.verify() == []


def test_printed_it_says_what_it_holds_and_what_made_it(index, documents):
    assert repr(index) == f"<SemanticIndex 'index': {len(documents)} documents, vectors by StaticEmbedding>"


def test_documents_are_added_updated_and_left_alone_by_id(index, model, documents):
    changed = Document("d1", "The cook made quite another soup.")
    counts = index.add([documents[0], changed, Document("new", "A sentence that is new.")], progress=False)
    assert counts == AddCounts(added=1, updated=1, unchanged=1, encoded=2)
    assert len(index) == len(documents) + 1
    now = [documents[0], *documents[2:], changed, index["new"]]
    assert ids(index.search("another soup", 5, mode="vectors")) == best(model, now, "another soup", 5)
    assert index["d1"] == changed


def test_of_several_documents_of_one_id_the_last_counts(model, tmp_path):
    index = SemanticIndex.create(tmp_path / "i", model)
    counts = index.add([Document("a", "one"), Document("b", "two"), Document("a", "three")], progress=False)
    assert (len(index), index["a"].text) == (2, "three")
    assert counts == AddCounts(added=2, updated=1, encoded=2), "the text that was replaced was encoded"


def test_a_text_is_encoded_once_whatever_its_id(model, tmp_path):
    index = SemanticIndex.create(tmp_path / "i", model)
    assert index.add([Document(str(i), f"text {i % 3}") for i in range(9)], progress=False).encoded == 3
    assert index.add([Document("x", "text 1"), Document("y", "text 9")], progress=False).encoded == 1
    assert index.info()["rows"] == 4
    assert ids(index.search("text 1", 4, mode="vectors")) == ["1", "4", "7", "x"]


def test_deleted_documents_are_not_found_and_pass_silently(index, model, documents):
    gone = best(model, documents, "the old gate", 3)
    assert index.delete([*gone, "never there"]) == 3
    left = [document for document in documents if document.id not in gone]
    assert ids(index.search("the old gate", 9, mode="vectors")) == best(model, left, "the old gate", 9)
    assert index.add([d for d in documents if d.id in gone], progress=False) == AddCounts(added=3), "a vector was lost"
    assert sorted(ids(index.search("the old gate", 3, mode="vectors"))) == sorted(gone)


def test_pruning_removes_what_is_not_given(index, documents):
    counts = index.add(documents[:10], progress=False, prune=True)
    assert (counts.unchanged, counts.removed, len(index)) == (10, len(documents) - 10, 10)
    assert index.documents() == documents[:10]


def test_an_interrupted_add_changes_nothing_and_goes_on_where_it_stopped(index, model, documents, tmp_path):
    new = [Document(f"n{i}", f"Number {i} of the new ones.") for i in range(150)]

    def interrupted():
        yield from new[:100]
        raise KeyboardInterrupt

    before = index.search("number", 5, mode="vectors")
    with pytest.raises(KeyboardInterrupt):
        index.add(interrupted(), batch_size=1, progress=False)
    again = SemanticIndex.open(index.folder, model)
    assert again.search("number", 5, mode="vectors") == before
    assert again.documents() == documents
    assert again.verify() == []
    counts = again.add(new, batch_size=1, progress=False)
    assert counts.added == 150
    assert counts.encoded == 150 - 96, "three chunks of 32 had been encoded"
    assert again.documents() == [*documents, *new]
    assert again.verify() == []


def test_an_open_index_stays_at_its_generation_until_refreshed(index, model, documents):
    reader = SemanticIndex.open(index.folder, model)
    index.delete(["d0"])
    index.rebuild(progress=False)
    assert len(reader) == len(documents)
    assert reader["d0"] == documents[0]
    assert ids(reader.search(documents[0].full_text, 1, mode="vectors")) == ["d0"]
    assert reader.refresh()
    assert not reader.refresh()
    assert "d0" not in reader


def test_another_model_is_refused_and_both_are_named(index, model):
    with pytest.raises(WrongModelError, match=r"StaticEmbedding.*StaticEmbedding.*other vectors"):
        SemanticIndex.open(index.folder, static_model(seed=1))
    SemanticIndex.open(index.folder, static_model(seed=0))


def test_other_settings_routers_or_weights_are_another_model(built, loaded, model, tmp_path):
    index = SemanticIndex.create(tmp_path / "i", loaded)
    SemanticIndex.open(index.folder, ssmoe_embed.load(built, progress=False))
    SemanticIndex.open(index.folder, ssmoe_embed.load(built, progress=False).bfloat16().float())
    with pytest.raises(WrongModelError, match="calibration is 'none' instead of 'standardize'"):
        SemanticIndex.open(index.folder, ssmoe_embed.load(built, progress=False, calibration="none"))
    other = ssmoe_embed.load(built, progress=False)
    for weight in other[0].routers.weights.values():
        weight.mul_(1.5)
    with pytest.raises(WrongModelError, match="spectral routers differ"):
        SemanticIndex.open(index.folder, other)
    with pytest.raises(WrongModelError, match="24 dimensions instead of"):
        SemanticIndex.open(index.folder, model)


def test_vectors_that_depend_on_their_batch_cannot_be_kept(built, tmp_path):
    with pytest.raises(ValueError, match="standardize"):
        SemanticIndex.create(tmp_path / "i", ssmoe_embed.load(built, progress=False, calibration="batch"))
    assert not (tmp_path / "i").exists()


def test_vectors_made_elsewhere_can_be_added(model, documents, index, tmp_path):
    other = SemanticIndex.create(tmp_path / "other", model)
    vectors = model.encode([d.full_text for d in documents])  # not of unit length
    assert other.add_vectors(documents, vectors).added == len(documents)
    assert ids(other.search("soup", 9, mode="vectors")) == ids(index.search("soup", 9, mode="vectors"))
    np.testing.assert_allclose(other.vectors(), index.vectors(), atol=1e-6)
    with pytest.raises(ValueError, match="vector"):
        other.add_vectors([Document("x", "x y"), Document("y", "y z")], np.ones((1, 24)))
    with pytest.raises(ValueError, match="dimension"):
        other.add_vectors([Document("x", "x y")], np.ones((1, 7)))
    with pytest.raises(ValueError, match="not finite"):
        other.add_vectors([Document("x", "x y")], np.full((1, 24), np.nan))
    assert len(SemanticIndex.open(other.folder)) == len(documents)


def test_half_precision_takes_half_the_space_and_nearly_the_same_scores(model, documents, index, tmp_path):
    half = SemanticIndex.create(tmp_path / "half", model, dtype="float16")
    half.add(documents, progress=False)
    sizes = [(i.folder / i.info()["vectors"]).stat().st_size for i in (half, index)]
    assert 2 * sizes[0] == sizes[1]
    expected = dict(zip((d.id for d in documents), cosines(model, documents, "soup"), strict=True))
    for hit in half.search("soup", 5, mode="vectors"):
        assert hit.score == pytest.approx(expected[hit.document.id], abs=2e-3)


def test_an_index_without_a_model_takes_vectors_only(index, model):
    bare = SemanticIndex.open(index.folder)
    [hits] = bare.search_vectors(3 * model.encode("soup"), 4)
    assert ids(hits) == ids(index.search("soup", 4, mode="vectors"))
    for call in (lambda: bare.search("soup", mode="vectors"), lambda: bare.add([])):
        with pytest.raises(ValueError, match="without a model"):
            call()
    with pytest.raises(ValueError, match="3 dimensions"):
        bare.search_vectors(np.ones(3))


@pytest.mark.parametrize(("query", "top", "message"), [(" ", 1, "empty"), ("x", 0, "top=0")])
def test_a_senseless_search_is_refused(index, query, top, message):
    with pytest.raises(ValueError, match=message):
        index.search(query, top)
    with pytest.raises(ValueError, match=message):
        index.search_many(["y", query], top)


def test_no_queries_have_no_hits_and_a_plain_text_is_no_document(index):
    assert index.search_many([]) == []
    with pytest.raises(ValueError, match="empty"):
        index.explain(" ", "d1")
    for add in (lambda: index.add(["a text"], progress=False), lambda: index.add_vectors(["a text"], np.ones((1, 24)))):
        with pytest.raises(TypeError, match=r"'a text' is no Document; give an index Document\(id, text\)"):
            add()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "", "text": "x"}, "name"),
        ({"id": "a", "text": " "}, "no text"),
        ({"id": "a", "text": "x", "metadata": {"y": object()}}, "JSON"),
    ],
)
def test_a_document_needs_a_name_a_text_and_plain_metadata(arguments, message):
    with pytest.raises(ValueError, match=message):
        Document(**arguments)


def test_odd_texts_come_back_as_they_went_in(model, tmp_path):
    odd = [
        "nul \0 byte",
        "half \ud800 a pair",
        "東京は晴れです",
        "line\nbreak\r\n",
        "'; DROP TABLE documents; --",
        "e\u0301",
    ]
    index = SemanticIndex.create(tmp_path / "i", model)
    given = [Document(text, text, {"k'ey": text}, text, text) for text in odd]
    index.add(given, progress=False)
    assert SemanticIndex.open(index.folder).documents() == given
    assert given[1].text == "half ? a pair"
    assert len(index.search("x", filters={"k'ey": odd[4]}, mode="vectors")) == 1
    json.dumps(index.info())


def test_an_empty_index_finds_nothing_and_a_second_one_is_refused(model, tmp_path):
    index = SemanticIndex.create(tmp_path / "i", model)
    assert (len(index), index.search("x", mode="vectors"), index.verify(), index.vectors().shape) == (
        0,
        [],
        [],
        (0, 24),
    )
    assert index.add([], progress=False) == AddCounts()
    with pytest.raises(FileExistsError, match="already"):
        SemanticIndex.create(tmp_path / "i", model)
    with pytest.raises(FileNotFoundError, match="ssmoe index"):
        SemanticIndex.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="hnsw"):
        SemanticIndex.create(tmp_path / "j", model, kind="hnws")
