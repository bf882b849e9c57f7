"""Whatever is killed, cut short, filled up or written twice: the last good index stays, and errors say what to do."""

import os
import pathlib
import resource
import shutil
import signal
import sqlite3
import sys
from contextlib import closing

import numpy as np
import pytest
from indexing import static_model, vectors

from ssmoe_embed.search import BusyIndexError, DamagedIndexError, Document, SemanticIndex
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.writing import writing

OLD = [Document(f"o{i}", f"old text {i}", {"i": i}) for i in range(4)]
NEW = [Document("o1", "another text"), Document("n", "new text"), Document("o2", "old text 2", {"i": 9})]


@pytest.fixture(scope="module")
def model():
    return static_model()


@pytest.fixture
def folder(model, tmp_path):
    index = SemanticIndex.create(tmp_path / "index", model)
    index.add_vectors(OLD, vectors(OLD))
    return index.folder


def change(index):
    index.add_vectors(NEW, vectors(NEW))


def delete(index):
    index.delete(["o0", "o3"])


def rebuild(index):
    index.rebuild(kind="sq8", progress=False)


def contents(folder):
    """Documents of an index, which must be whole."""
    index = SemanticIndex.open(folder)
    assert index.verify() == []
    documents = index.documents()
    stored = index.vectors()
    expected = vectors(documents)
    np.testing.assert_allclose(stored, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    return {document.id: document for document in documents}


def in_fork(action):
    """Run something in a process of its own; returns how that ended."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    try:
        action()
    finally:
        os._exit(1)


def killed_at(step, folder, action):
    """Do something in a process of its own that is killed when it is about to touch the disk for the `step`-th time.

    Returns whether it was killed, or had finished before.
    """
    process = os.fork()
    if process:
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])
    try:
        index = SemanticIndex.open(folder)
        left = step

        def touch(*_):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        opened = Store.__init__

        def traced(store, *arguments, **keywords):
            opened(store, *arguments, **keywords)
            store.db.set_trace_callback(touch)

        def before(function):
            return lambda *arguments, **keywords: (touch(), function(*arguments, **keywords))[1]

        Store.__init__ = traced
        os.fsync = before(os.fsync)
        for name in ("replace", "unlink", "open", "mkdir"):
            setattr(pathlib.Path, name, before(getattr(pathlib.Path, name)))
        action(index)
        os._exit(0)
    except BaseException:  # the parent must not go on in this process
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "action", [change, pytest.param(delete, marks=pytest.mark.slow), pytest.param(rebuild, marks=pytest.mark.slow)]
)
def test_a_kill_at_any_moment_leaves_the_last_good_index(model, tmp_path, action):
    import faiss

    faiss.omp_set_num_threads(1)  # a pool of threads does not survive a fork
    seen, step = set(), 0
    while True:
        index = SemanticIndex.create(tmp_path / str(step), model)
        index.add_vectors(OLD, vectors(OLD))
        old = contents(index.folder)
        killed = killed_at(step, index.folder, action)
        found = contents(index.folder)
        again = SemanticIndex.open(index.folder)
        action(again)
        finished = contents(index.folder)
        assert found in (old, finished), f"killed at step {step}, the index is neither the old nor the new one"
        seen.add((found == old, found == finished))
        names = {path.name for path in index.folder.iterdir()}
        assert not [name for name in names if name.startswith(".") or name == "writer.json"], (
            "something was left lying about"
        )
        if not killed:
            break
        step += 3
    assert found == finished
    assert step >= 25, "the kills did not cover the whole change"


def test_what_was_encoded_before_a_kill_is_not_encoded_again(model, folder):
    many = [Document(f"m{i}", f"one of many {i}") for i in range(70)]

    def killed(documents):
        yield from documents[:40]
        os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if not process:
        SemanticIndex.open(folder, model).add(killed(many), batch_size=1, progress=False)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
    counts = SemanticIndex.open(folder, model).add(many, batch_size=1, progress=False)
    assert (counts.added, counts.encoded) == (70, 70 - 32)


@pytest.mark.parametrize("name", ["manifest.json", "store-1.sqlite", "vectors-1.bin", "approximate-3.faiss"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_file_cut_short_or_missing_is_named(folder, name, harm):
    SemanticIndex.open(folder).rebuild(kind="sq8", progress=False)
    path = folder / name
    with closing(sqlite3.connect(folder / "store-1.sqlite")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # or what is cut off would still stand in the log
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        (DamagedIndexError, FileNotFoundError), match=r"manifest\.json|store-1|vectors-1|approximate-3|no index"
    ):
        contents(folder)


def test_damaged_vectors_are_not_published_by_a_writer(folder):
    index = SemanticIndex.open(folder)
    before = (folder / "manifest.json").read_bytes()
    vectors = folder / "vectors-1.bin"
    vectors.write_bytes(vectors.read_bytes()[: vectors.stat().st_size // 2])
    with pytest.raises(DamagedIndexError, match="vectors-1"):
        delete(index)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["vectors-1.bin", "approximate-3.faiss"])
def test_a_changed_byte_is_found_by_verifying(folder, name):
    SemanticIndex.open(folder).rebuild(kind="sq8", progress=False)
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    [problem] = SemanticIndex.open(folder).verify()
    assert name in problem


def test_a_changed_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"documents": 4', '"documents": 5'), encoding="utf-8")
    with pytest.raises(DamagedIndexError, match="checksum"):
        SemanticIndex.open(folder)


def test_files_of_different_moments_are_refused(folder, tmp_path):
    delete(SemanticIndex.open(folder))
    shutil.copytree(folder, tmp_path / "mixed")
    change(SemanticIndex.open(folder))
    shutil.copy(folder / "manifest.json", tmp_path / "mixed" / "manifest.json")
    with pytest.raises(DamagedIndexError, match="copied together"):
        SemanticIndex.open(tmp_path / "mixed")


def test_a_second_writer_is_told_who_the_first_is_and_readers_go_on(folder):
    with writing(folder):
        with pytest.raises(BusyIndexError, match=str(os.getpid())):
            delete(SemanticIndex.open(folder))
        assert contents(folder) == {document.id: document for document in OLD}
    delete(SemanticIndex.open(folder))
    assert len(contents(folder)) == 2


def test_a_generation_that_is_replaced_while_it_is_opened_gives_way_to_the_new_one(folder, monkeypatch):
    def slow(path, generation):
        store = Store(path, generation)
        monkeypatch.undo()
        delete(other)
        other.rebuild(progress=False)  # into new files
        assert not path.exists()
        return store

    other = SemanticIndex.open(folder)
    monkeypatch.setattr("ssmoe_embed.search.generation.Store", slow)
    assert {document.id for document in SemanticIndex.open(folder).documents()} == {"o1", "o2"}


def test_a_writer_that_died_does_not_lock_the_index(folder):
    process = os.fork()
    if not process:
        with writing(folder):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    delete(SemanticIndex.open(folder))
    assert len(contents(folder)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize(
    "size", [pytest.param(60_000, marks=pytest.mark.slow), 150_000, pytest.param(400_000, marks=pytest.mark.slow)]
)  # what is full first: vectors, or the database
def test_a_full_disk_is_an_error_that_loses_nothing(folder, size):
    more = [Document(f"m{i}", f"text {i} " * 50) for i in range(3000)]
    made = vectors(more)

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            SemanticIndex.open(folder).add_vectors(more, made)
        except OSError as error:
            os._exit(7 if "make room" in str(error) and str(folder) in str(error) else 8)

    assert os.waitstatus_to_exitcode(in_fork(fill)) == 7
    assert contents(folder) == {document.id: document for document in OLD}
    change(SemanticIndex.open(folder))
    assert len(contents(folder)) == 5
