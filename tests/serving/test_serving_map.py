"""The map of a corpus: every document once, the same every time, like near like."""

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")
pytest.importorskip("faiss", reason="an index needs the extra `faiss`")


from ssmoe_embed.serving.maps import MapMaker, MapMethod, group, project, sample_of


def test_the_map_shows_every_document_and_says_where_hits_are(client, index):
    shown = client.get("/api/map").json()
    assert shown["state"] == "ready"
    assert shown["ids"] == [document.id for document in index.documents()]
    assert all(len(shown[name]) == len(index) for name in ("x", "y", "titles"))
    assert max(map(abs, shown["x"] + shown["y"])) <= 1
    assert len(shown["colors"]["parity"]["names"]) == 3
    assert "number" not in shown["colors"]  # as many values as documents
    for hit in client.get("/api/search", params={"q": "hello"}).json()["hits"]:
        row = shown["ids"].index(hit["id"])
        np.testing.assert_allclose(hit["point"], [shown["x"][row], shown["y"][row]], atol=1e-4)


def test_the_map_is_the_same_every_time_and_made_only_once(index, monkeypatch):
    vectors = index.vectors()
    assert np.array_equal(project(vectors, MapMethod.TSNE), project(vectors, MapMethod.TSNE))
    first = MapMaker(index)
    first.start()
    first.wait()
    assert first.error is None
    monkeypatch.setattr("ssmoe_embed.serving.maps.project", None)  # would be called to make it again
    second = MapMaker(index)
    second.start()
    second.wait()
    assert np.array_equal(first.made.points, second.made.points)
    assert list(first.made.names) == list(second.made.names)
    third = MapMaker(index, most=10)  # another sample is another map
    third.start()
    third.wait()
    assert third.error


def test_documents_that_are_not_on_the_map_are_placed_by_their_neighbours(index):
    maker = MapMaker(index, most=20)
    maker.start()
    maker.wait()
    assert len(maker.made.documents) == 20
    again = maker.made.place(maker.made.vectors[:3] * 7)
    distance = np.linalg.norm(again - maker.made.points[:3], axis=1)
    anywhere = np.linalg.norm(maker.made.points[:, None] - maker.made.points[None], axis=2).mean()
    assert distance.mean() < anywhere / 2


def test_like_vectors_are_near_each_other_on_the_map():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 20)) * 10
    vectors = np.concatenate([centre + generator.normal(size=(30, 20)) for centre in centres])
    for method in {MapMethod.TSNE, MapMethod.PCA, MapMethod.best()}:
        points = project(vectors, method)
        middles = points.reshape(3, 30, 2).mean(axis=1)
        nearest = np.linalg.norm(points[:, None] - middles, axis=2).argmin(axis=1)
        assert np.array_equal(nearest, np.repeat([0, 1, 2], 30))
    words = np.repeat(["apple pie", "steam engine", "night sky"], 30)
    groups, names = group(vectors, words.tolist(), most=3)
    named = {names[number]: set(words[groups == number]) for number in range(3)}
    assert all(len(inside) == 1 and name.split(" · ")[0] in next(iter(inside)) for name, inside in named.items())


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("alike", [True, False])
def test_a_small_corpus_has_a_map_too(count, alike):
    vectors = np.ones((count, 8)) if alike else np.random.default_rng(0).normal(size=(count, 8))
    assert project(vectors, MapMethod.TSNE).shape == (count, 2)
    assert np.isfinite(project(vectors, MapMethod.TSNE)).all()
    groups, names = group(vectors, ["12"] * count)
    assert groups.max() < len(names)


@pytest.mark.parametrize("most", [1, 7, 31, 100])
def test_a_sample_is_spread_evenly_and_known_by_the_state_of_the_index(index, most):
    ids = [document.id for document in index.documents()]
    documents, vectors, state = sample_of(index, most)
    places = [ids.index(document.id) for document in documents]
    assert len(places) == len(set(places)) == min(len(ids), most)
    np.testing.assert_array_equal(vectors, index.vectors()[places])
    if 1 < most < len(ids):
        assert (places[0], places[-1]) == (0, len(ids) - 1)
        assert np.ptp(np.diff(places)) <= 1
    assert sample_of(index, most)[2] == state
