"""Encoding on a cluster: the vectors of a single process, and nothing encoded twice."""

import numpy as np
import pytest

import ssmoe_embed
from ssmoe_embed.distributed.engine import Encoding, ModelReference, ShardEncoder
from ssmoe_embed.distributed.shards import ShardFolder, TextRow, add_shards, write_shards
from ssmoe_embed.embedding.streaming import VectorFormat
from ssmoe_embed.search.fingerprint import model_fingerprint
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.search.manifest import WrongModelError

pytest.importorskip("faiss", reason="an index needs the extra `faiss`")
pytest.importorskip("pyarrow", reason="shards need pyarrow")


@pytest.fixture(scope="module")
def model(built):
    return ssmoe_embed.load(built, progress=False)


@pytest.fixture(scope="module")
def corpus(texts):
    return "\n".join(" ".join(text.split()) for text in texts)


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this machine as a cluster."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, logging_level="ERROR", log_to_driver=False
    )
    yield ray
    ray.shutdown()


SMALL = Encoding(batch_size=2)


def encoded_here(folder, rows, model, size, encoding=SMALL):
    """Shards as workers make them, without a cluster; returns the names of those that had to be encoded."""
    place, fingerprint = ShardFolder(folder), model_fingerprint(model)
    shards, waiting = place.plan(rows, size, encoding.digest(fingerprint))
    for shard in waiting:
        place.finish(shard.name, encoding.encode(model, place.waiting(shard.name)))
    place.complete(shards, {"model": fingerprint, "encoding": vars(encoding)})
    return [shard.name for shard in waiting]


def rows_of(texts):
    return [TextRow(str(number), text) for number, text in enumerate(texts)]


# --- shards, without a cluster --------------------------------------------------------------------------------------------


def test_shards_hold_texts_and_vectors_in_order(model, texts, tmp_path):
    rows = [TextRow("a", "", None, "x.txt:1", '{"n": 1}'), *rows_of(texts)]
    encoded_here(tmp_path / "s", rows, model, 7)
    read = list(ShardFolder(tmp_path / "s").read())
    assert [row for part, _ in read for row in part] == rows
    vectors = np.concatenate([vectors for _, vectors in read])
    np.testing.assert_allclose(vectors, model.encode([row.text for row in rows]), atol=1e-5)
    with (tmp_path / "all.npy").open("wb") as output:
        assert write_shards(ShardFolder(tmp_path / "s"), output, VectorFormat.NPY) == len(rows)
    assert np.array_equal(np.load(tmp_path / "all.npy"), vectors)


def test_finished_shards_are_kept_and_changed_ones_made_again(model, texts, tmp_path):
    rows = rows_of(texts)
    first = encoded_here(tmp_path, rows, model, 10)
    assert len(first) == -(-len(rows) // 10)
    assert encoded_here(tmp_path, rows, model, 10) == []
    rows[12] = TextRow("12", "another text")
    assert len(encoded_here(tmp_path, rows, model, 10)) == 1
    assert len(list(tmp_path.glob("part-*"))) == len(first), "the shard that is not needed any more is still there"
    assert len(encoded_here(tmp_path, rows, model, 10, Encoding(batch_size=2, arguments={"truncate_dim": 4}))) == len(
        first
    )


def test_a_worker_finishes_the_shards_that_it_is_given_by_name(model, built, texts, tmp_path):
    """What Ray Data calls, here without Ray."""
    place, fingerprint = ShardFolder(tmp_path), model_fingerprint(model)
    shards, waiting = place.plan(rows_of(texts), 20, SMALL.digest(fingerprint))
    worker = ShardEncoder(str(tmp_path), ModelReference(str(built)), fingerprint, SMALL)
    for shard in reversed(waiting):
        assert worker({"name": [shard.name]}) == {"name": [shard.name], "texts": [shard.documents]}
    place.complete(shards, {})
    vectors = np.concatenate([vectors for _, vectors in place.read()])
    np.testing.assert_allclose(vectors, model.encode(texts), atol=1e-5)


def test_unfinished_work_is_not_taken_for_finished(model, texts, tmp_path):
    encoded_here(tmp_path, rows_of(texts), model, 10)
    place = ShardFolder(tmp_path)
    place.plan(rows_of(["one more", *texts]), 10, "other")
    assert not place.is_complete
    with pytest.raises(FileNotFoundError, match="goes on"):
        list(place.read())
    encoded_here(tmp_path, rows_of(texts), model, 10)
    next(tmp_path.glob("part-000001*")).unlink()
    with pytest.raises(ValueError, match=r"part-000001.*is missing"):
        list(place.read())
    (tmp_path / "shards.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        list(place.read())


def test_an_index_takes_shards_of_its_own_model_only(model, built, texts, tmp_path):
    index = SemanticIndex.create(tmp_path / "index", model)
    encoded_here(tmp_path / "s", rows_of(["", *texts]), model, 10)
    assert add_shards(index, ShardFolder(tmp_path / "s")).added == len(texts), "an empty text is no document"
    np.testing.assert_allclose(index.vectors(), model.encode(texts, normalize_embeddings=True), atol=1e-5)
    encoded_here(tmp_path / "fewer", rows_of(["", *texts[:3]]), model, 10)
    assert add_shards(index, ShardFolder(tmp_path / "fewer"), prune=True).removed == len(texts) - 3
    other = ssmoe_embed.load(built, method="ev", progress=False)
    encoded_here(tmp_path / "other", rows_of(texts), other, 10)
    with pytest.raises(WrongModelError, match=r"method=ev.*the index is for .*dimensions instead of"):
        add_shards(index, ShardFolder(tmp_path / "other"))
    encoded_here(tmp_path / "cut", rows_of(texts), model, 10, Encoding(arguments={"prompt_name": "query"}))
    with pytest.raises(ValueError, match="prompt_name='query'"):
        add_shards(index, ShardFolder(tmp_path / "cut"))


def test_shards_of_another_model_make_no_index(ssmoe, built, texts, tmp_path):
    encoded_here(tmp_path / "s", rows_of(texts), ssmoe_embed.load(built, method="ev", progress=False), 10)
    command = ("index", tmp_path / "s", "-o", tmp_path / "index", "--model", built)
    status, _, err = ssmoe(*command)
    assert status == 1
    assert "Index them with the model that made them" in " ".join(err.split())
    assert not (tmp_path / "index").exists()
    assert ssmoe(*command, "--method", "ev")[0] == 0
    assert len(SemanticIndex.open(tmp_path / "index")) == len(texts)


def test_the_same_text_is_encoded_once_among_documents(model, monkeypatch):
    seen = []
    original = type(model).encode

    def counting(self, inputs, *args, **kwargs):
        seen.extend(inputs)
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", counting)
    vectors = Encoding(as_documents=True).encode(model, ["a", "b", "a"])
    assert sorted(seen) == ["a", "b"]
    assert np.array_equal(vectors[0], vectors[2])


def test_int8_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="range of all vectors"):
        Encoding(arguments={"precision": "int8"})


def test_workers_need_a_cluster(ssmoe, tmp_path):
    (tmp_path / "in.txt").write_text("a\n", encoding="utf-8")
    for arguments in (("encode", tmp_path / "in.txt"), ("index", tmp_path / "in.txt")):
        status, _, err = ssmoe(*arguments, "-o", tmp_path / "x.npy", "--workers", 2)
        assert status == 1
        assert "--engine ray" in err
    status, _, err = ssmoe("encode", tmp_path / "in.txt", "-o", tmp_path / "x.npy", "--engine", "rey")
    assert status == 1
    assert "Did you mean 'ray'" in " ".join(err.split())


# --- on a cluster of two workers -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.usefixtures("cluster")
def test_a_workers_error_is_told_in_one_line(texts, tmp_path):
    from ssmoe_embed.distributed.engine import encode_on_ray

    with pytest.raises(
        ValueError,
        match=r"^A Ray worker failed: [^.]*'no/such/model' does not exist[^.]*\. .*resumes with the others\.$",
    ):
        encode_on_ray(rows_of(texts), tmp_path, ModelReference("no/such/model"), workers=1, progress=False)


@pytest.mark.extras
def test_a_cluster_that_does_not_start_is_told_with_what_to_do(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ssmoe_embed.distributed.engine import encode_on_ray

    def refuse(address=None, **_):
        raise ConnectionError("none") if address else Exception("The node timed out.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"could not start on this machine: The node timed out\. Try again"):
        encode_on_ray(rows_of("ab"), tmp_path, ModelReference("ssmoe/tiny"), progress=False)


@pytest.mark.extras
def test_a_cluster_that_is_not_there_is_no_reason_to_work_elsewhere(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ssmoe_embed.distributed.engine import encode_on_ray

    def refuse(**_):
        raise ConnectionError("refused")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ValueError, match=r"no Ray cluster at RAY_ADDRESS='10\.0\.0\.1:6379' \(refused\); start it"):
        encode_on_ray(rows_of("ab"), tmp_path, ModelReference("ssmoe/tiny"), progress=False)


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.usefixtures("cluster")
def test_a_cluster_gives_the_vectors_of_one_process(ssmoe, built, texts, tmp_path):
    """To the bit: the same texts share a forward pass, with the same number of threads."""
    (tmp_path / "in.txt").write_text("\n".join(["", *texts]), encoding="utf-8")
    arguments = ("encode", tmp_path / "in.txt", "--model", built, "--batch-size", 1)
    status, _, err = ssmoe(*arguments, "-o", tmp_path / "here.npy")
    assert status == 0, err
    status, _, err = ssmoe(*arguments, "-o", tmp_path / "shards", "--engine", "ray", "--workers", 2)
    assert status == 0, err
    assert f"{len(texts) + 1} vectors" in err
    shards = ShardFolder(tmp_path / "shards")
    assert len(shards.shards()) == 2
    assert np.array_equal(np.concatenate([part for _, part in shards.read()]), np.load(tmp_path / "here.npy"))


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.usefixtures("cluster")
def test_an_index_made_on_a_cluster_is_that_of_one_process(ssmoe, built, model, corpus, tmp_path):
    lines = tmp_path / "corpus.txt"
    lines.write_text(corpus, encoding="utf-8")
    arguments = ("index", lines, "--model", built, "--batch-size", 1)
    clustered = (*arguments, "-o", tmp_path / "there", "--engine", "ray", "--workers", 1)
    for command in ((*arguments, "-o", tmp_path / "here"), clustered):
        status, _, err = ssmoe(*command)
        assert status == 0, err
    here, there = (SemanticIndex.open(tmp_path / name, model) for name in ("here", "there"))
    assert there.documents() == here.documents()
    np.testing.assert_allclose(there.vectors(), here.vectors(), atol=1e-6)
    assert there.verify() == []
    assert not (tmp_path / "there" / "shards").exists()
    lines.write_text(
        corpus.split("\n", 1)[1], encoding="utf-8"
    )  # nothing new: no worker is started, what is gone is removed
    status, _, err = ssmoe(*clustered, "--prune")
    assert status == 0, err
    there.refresh()
    assert len(there) == len(here) - 1


def test_a_worker_with_another_model_refuses_to_work(built, tmp_path):
    fingerprint = model_fingerprint(ssmoe_embed.load(built, method="ev", progress=False))
    with pytest.raises(WrongModelError, match="a worker has another model"):
        ShardEncoder(str(tmp_path), ModelReference(str(built)), fingerprint, SMALL)


def test_no_workers_are_refused(tmp_path):
    engine = pytest.importorskip("ssmoe_embed.distributed.engine")
    with pytest.raises(ValueError, match="at least 1"):
        engine.encode_on_ray([TextRow("1", "a")], tmp_path, ModelReference("x"), workers=0)
