"""The index kinds find what an exact search finds, whatever was added, deleted or filtered."""

import numpy as np
import pytest
from indexing import static_model

from ssmoe_embed.search import Document, IndexKind, SemanticIndex
from ssmoe_embed.search.kinds import APPROXIMATE
from ssmoe_embed.search.nearest import Allowed, exact_top, recall

ROWS, DIMENSION = 3000, 24
KINDS = ["hnsw", "ivf", "ivfpq", "sq8", "binary"]


def clustered(rows, seed=0, dimension=DIMENSION):
    """Unit vectors around a few centres, as texts on a few subjects have."""
    centres = np.random.default_rng(99).standard_normal((40, dimension))
    rng = np.random.default_rng(seed)
    made = centres[rng.integers(0, 40, rows)] + 0.6 * rng.standard_normal((rows, dimension))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


VECTORS = clustered(ROWS)
DOCUMENTS = [Document(f"d{i}", f"text {i}", {"tenth": i % 10, "rare": i % 500}) for i in range(ROWS)]
QUERIES = clustered(50, seed=1)


@pytest.fixture(scope="module")
def model():
    return static_model()


@pytest.fixture(params=KINDS)
def index(request, model, tmp_path):
    made = SemanticIndex.create(tmp_path / "index", model, kind=request.param)
    made.add_vectors(DOCUMENTS[:2000], VECTORS[:2000])
    return made


def brute(allowed, top=10):
    """Ids of the nearest of some documents, by number, for each query."""
    scores = QUERIES.astype(np.float64) @ VECTORS[list(allowed)].T.astype(np.float64)
    return [[f"d{allowed[i]}" for i in row] for row in np.argsort(-scores, axis=1, kind="stable")[:, :top]]


def share_found(index, allowed, filters=None):
    """The share of the ten nearest that the index finds; its scores must be exact and ordered."""
    found = 0
    for query, hits, truth in zip(
        QUERIES, index.search_vectors(QUERIES, 10, filters=filters), brute(allowed), strict=True
    ):
        names = [hit.document.id for hit in hits]
        assert len(set(names)) == len(names) == len(truth)
        assert set(names) <= {f"d{i}" for i in allowed}
        np.testing.assert_allclose([h.score for h in hits], [VECTORS[int(n[1:])] @ query for n in names], atol=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        found += len(set(names) & set(truth)) / len(truth)
    return found / len(QUERIES)


def test_every_kind_finds_nearly_all_after_adding_deleting_and_reopening(index, model):
    kind, measured = index.info()["search"]["kind"], index.info()["search"]
    assert kind == index.info()["kind"]
    assert measured["recall"] >= 0.95
    assert share_found(index, np.arange(2000)) >= 0.93
    index.add_vectors(DOCUMENTS[2000:2100], VECTORS[2000:2100])
    assert index.info()["approximate"]["rows"] == 2000, "so few are looked at one by one"
    assert share_found(index, np.arange(2100)) >= 0.93
    index.delete([f"d{i}" for i in range(0, 2100, 3)])
    left = np.array([i for i in range(2100) if i % 3])
    assert share_found(SemanticIndex.open(index.folder), left) >= 0.93
    index.rebuild(progress=False)
    assert index.info()["approximate"]["rows"] == index.info()["live"] == len(left)
    assert share_found(index, left) >= 0.93
    assert index.verify() == []


@pytest.mark.parametrize("filters", [{"tenth": 3}, {"tenth": [1, 2, 3, 4, 5]}, {"rare": 7}])
def test_every_kind_finds_what_passes_a_filter(index, filters):
    [(key, value)] = filters.items()
    values = value if isinstance(value, list) else [value]
    allowed = np.array([i for i in range(2000) if DOCUMENTS[i].metadata[key] in values])
    assert share_found(index, allowed, filters) >= 0.93


def test_an_index_that_grew_is_extended(model, tmp_path, monkeypatch):
    monkeypatch.setattr("ssmoe_embed.search.nearest._TAIL", 100)
    index = SemanticIndex.create(tmp_path / "index", model, kind="ivf")
    for start, end, covered, trained in [(0, 1000, 1000, 1000), (1000, 1050, 1000, 1000), (1050, 3000, 3000, 1000)]:
        index.add_vectors(DOCUMENTS[start:end], VECTORS[start:end])
        info = index.info()
        assert (info["approximate"]["rows"], info["search"]["trained_rows"]) == (covered, trained)
        assert share_found(index, np.arange(end)) >= 0.93


def test_another_kind_is_made_of_the_same_vectors(model, tmp_path):
    index = SemanticIndex.create(tmp_path / "index", model)
    index.add_vectors(DOCUMENTS, VECTORS)
    assert index.info()["search"]["kind"] == "flat"
    assert share_found(index, np.arange(ROWS)) == 1
    index.rebuild(kind="sq8", progress=False)
    assert (index.info()["kind"], index.info()["search"]["kind"]) == ("sq8", "sq8")
    assert share_found(index, np.arange(ROWS)) >= 0.93


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "dimension"), [(1, 5), (3, 37), (300, 37)])
def test_few_vectors_and_odd_dimensions_are_no_problem(kind, rows, dimension, tmp_path):
    vectors = clustered(rows, dimension=dimension)
    made = APPROXIMATE[IndexKind(kind)](dimension)
    made.train(vectors, rows)
    made.extend([vectors[: rows // 2], vectors[rows // 2 :]])
    made.save(tmp_path / "x")
    again = APPROXIMATE[IndexKind(kind)](dimension, made.rungs[-1], made.state)
    again.load(tmp_path / "x", mapped=True)
    found = again.candidates(vectors, 1, None)
    assert all(number in row for number, row in enumerate(found))


def test_auto_goes_by_the_number_of_vectors():
    kinds = [str(IndexKind.AUTO.resolved(rows)) for rows in (10, 20_000, 20_001, 2_000_000, 3_000_000)]
    assert kinds == ["flat", "flat", "hnsw", "hnsw", "ivfpq"]
    assert IndexKind.SQ8.resolved(10) is IndexKind.SQ8


def test_the_exact_search_is_a_sort_of_all_products(monkeypatch):
    monkeypatch.setattr("ssmoe_embed.search.nearest.row_blocks", lambda _: 700)  # several blocks
    allowed = np.flatnonzero(np.arange(ROWS) % 7)
    scores = QUERIES @ VECTORS.T
    for subset, first in [(None, 0), (None, 1500), (Allowed.of(allowed, ROWS), 0), (Allowed.of(allowed, ROWS), 1500)]:
        masked = scores.copy()
        masked[:, :first] = -np.inf
        if subset is not None:
            masked[:, ~subset.mask] = -np.inf
        rows, found = exact_top(VECTORS, QUERIES, 20, subset, first)
        np.testing.assert_array_equal(rows, np.argsort(-masked, axis=1, kind="stable")[:, :20])
        np.testing.assert_allclose(found, -np.sort(-masked, axis=1)[:, :20], atol=1e-6)
    rows, _ = exact_top(VECTORS[:3], QUERIES, 5)
    assert (rows[:, 3:] == -1).all()


def test_recall_is_the_share_of_the_true_rows():
    assert recall(np.array([[1, 2], [3, -1]]), np.array([[2, 5], [3, -1]])) == 0.75


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_clusters_are_found_on_the_gpus_where_faiss_has_some(kind, model, tmp_path, monkeypatch):
    """There is no GPU here: what goes to them stays on the CPU, and is the index that the clusters are found with."""
    faiss = pytest.importorskip("faiss")
    sent = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index: sent.append(index) or index)
    made = SemanticIndex.create(tmp_path / "index", model, kind=kind)
    made.add_vectors(DOCUMENTS, VECTORS)
    assert [index.ntotal > 1 for index in sent] == [True]
    assert share_found(made, range(ROWS)) >= 0.9
