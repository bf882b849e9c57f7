"""The database of an index: what a change costs, and what is left of what was removed."""

import shutil

import pytest
from indexing import static_model, vectors

from ssmoe_embed.search import Document, SemanticIndex
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.store_writing import WritableStore


@pytest.fixture
def store(tmp_path):
    made = WritableStore(tmp_path / "store.sqlite", 1)
    yield made
    made.close()


def documents(first, count):
    return [Document(f"d{i}", f"text {i}", {"path": f"{i // 9}.md", "line": i}) for i in range(first, first + count)]


def put(store, generation, given):
    """Add or replace documents, as a writer does."""
    store.generation = generation
    with store.transaction():
        store.remove([document.id for document in given])
        store.insert([(document, int(document.id[1:])) for document in given])


def take_back(store, generation):
    """Undo a generation and those after it, as the next writer does."""
    store.generation = generation
    store.take_back()


def steps(store, action):
    """How many hundreds of steps of SQLite's machine an action takes."""
    taken = 0

    def count():
        nonlocal taken
        taken += 1

    store.db.set_progress_handler(count, 100)
    try:
        action()
    finally:
        store.db.set_progress_handler(None, 0)
    return taken


def test_a_change_costs_the_same_in_a_small_and_in_a_large_index(store):
    put(store, 1, documents(0, 600))
    changes = {
        "new": lambda: put(store, 2, documents(9_000, 500)),
        "the same again": lambda: put(store, 2, documents(9_000, 500)),
        "older": lambda: put(store, 2, documents(0, 500)),
        "taken back": lambda: take_back(store, 2),
        "keys": store.facet_keys,
    }
    small = {name: steps(store, change) for name, change in changes.items()}
    put(store, 1, documents(600, 8_000))
    large = {name: steps(store, change) for name, change in changes.items()}
    assert small["new"] > 100, "the steps were not counted"
    for name in changes:
        assert large[name] <= 1.5 * small[name] + 2, name


def test_taking_back_leaves_what_was_published_and_no_facet_of_the_rest(store):
    put(store, 1, documents(0, 30))
    before = store.documents(), store.facet_keys()
    put(store, 2, [*documents(20, 2_500), Document("d3", "changed", {"color": "red"})])
    put(store, 2, [Document("d3", "changed again", {"shape": "round"})])
    assert set(store.facet_keys()) - set(before[1]) == {"shape"}
    take_back(store, 2)
    store.generation = 1
    assert (store.documents(), store.facet_keys()) == before
    assert store.ids({"path": ["0.md"]}) == [f"d{i}" for i in range(9)]
    assert [seq for seq, _ in store.matching('"3"', 9)] == [4], "words of the rest are gone too"
    [count] = store.db.execute("SELECT count(*) FROM facets").fetchone()
    assert count == 2 * 30


def test_changing_metadata_over_and_over_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("ssmoe_embed.search.writing._WASTED", 50)
    index = SemanticIndex.create(tmp_path / "index", static_model())
    for version in range(8):
        given = [Document(f"d{i}", f"text {i}", {"version": version}) for i in range(40)]
        index.add_vectors(given, vectors(given))
        assert index.documents() == given
    assert index._now.store.held() <= 40 + 2 * 50
    assert index.info()["rows"] == 40, "no text was encoded twice"
    assert index.verify() == []


def test_an_index_can_be_read_where_nothing_may_be_written(tmp_path, monkeypatch):
    given = documents(0, 20)
    index = SemanticIndex.create(tmp_path / "index", static_model())
    index.add_vectors(given, vectors(given))  # with the index still open, as in the process that made it
    shutil.copytree(index.folder, tmp_path / "copy")
    monkeypatch.setattr("ssmoe_embed.search.store.os.access", lambda *_: False)
    before = {path.name for path in (tmp_path / "copy").iterdir()}
    assert SemanticIndex.open(tmp_path / "copy").documents() == given
    assert {path.name for path in (tmp_path / "copy").iterdir()} == before


def test_what_a_killed_writer_left_in_the_log_is_read_too(tmp_path, store, monkeypatch):
    put(store, 1, documents(0, 20))
    (tmp_path / "copy").mkdir()
    for path in tmp_path.glob("store.sqlite*"):
        shutil.copy(path, tmp_path / "copy")
    monkeypatch.setattr("ssmoe_embed.search.store.os.access", lambda *_: False)
    assert Store(tmp_path / "copy" / "store.sqlite", 1).documents() == documents(0, 20)
