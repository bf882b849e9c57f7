"""Tasks on data of a folder: `--dataset-dir`."""

from __future__ import annotations

import gzip
import json

import datasets
import pytest

mteb = pytest.importorskip("mteb")

from ssmoe_embed.evaluation.leaderboard import one_version  # noqa: E402
from ssmoe_embed.evaluation.tasks.local_data import LocalData, differences, harness_data, use_local  # noqa: E402

PAIRS = [
    {"sentence1": f"a text {one}", "sentence2": f"another {two}", "score": float((one + two) % 6)}
    for one in range(3)
    for two in range(2)
]


def _jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def _saved(path):
    datasets.DatasetDict({"test": datasets.Dataset.from_list(PAIRS)}).save_to_disk(str(path))


def _saved_split(path):
    datasets.Dataset.from_list(PAIRS).save_to_disk(str(path / "test"))


LAYOUTS = {
    "saved": lambda root: _saved(root / "BIOSSES"),
    "saved under the data set's name": lambda root: _saved(root / "mteb" / "biosses-sts"),
    "saved splits": lambda root: _saved_split(root / "BIOSSES"),
    "jsonl": lambda root: _jsonl(root / "BIOSSES.jsonl", PAIRS),
    "jsonl.gz": lambda root: _jsonl(root / "BIOSSES.test.jsonl.gz", PAIRS),
    "jsonl.gz in a folder": lambda root: _jsonl(root / "BIOSSES" / "test.jsonl.gz", PAIRS),
    "parquet": lambda root: datasets.Dataset.from_list(PAIRS).to_parquet(str(root / "BIOSSES.test.parquet")),
    "parquet as the hub has it": lambda root: datasets.Dataset.from_list(PAIRS).to_parquet(
        str(root / "mteb" / "biosses-sts" / "data" / "test-00000-of-00001.parquet")
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_task_loads_its_data_from_a_folder(tmp_path, layout, caplog):
    (tmp_path / "mteb" / "biosses-sts" / "data").mkdir(parents=True) if "hub" in layout else None
    LAYOUTS[layout](tmp_path)
    task = use_local(mteb.get_task("BIOSSES"), LocalData(tmp_path))
    task.load_data()
    assert list(task.dataset["test"]) == PAIRS
    assert "6 examples instead of 100" in caplog.text
    assert task.metadata.revision.startswith("local-")
    task.unload_data()
    assert task.metadata.revision.startswith("local-")
    task.load_data()
    assert list(task.dataset["test"]) == PAIRS
    assert mteb.get_task("BIOSSES").metadata.revision[:6] != "local-"  # the task itself is as it was
    assert datasets.load_dataset.__module__ == "datasets.load"


def test_missing_columns_and_splits_are_named(tmp_path):
    _jsonl(tmp_path / "BIOSSES.jsonl", [{"sentence1": "a", "text2": "b", "score": 1.0}] * 100)
    task = use_local(mteb.get_task("BIOSSES"), LocalData(tmp_path))
    task.load_data()
    assert differences(task) == ["split 'test' has no column 'sentence2'"]
    _jsonl(tmp_path / "SICK-R.dev.jsonl", PAIRS)
    task = use_local(mteb.get_task("SICK-R"), LocalData(tmp_path))
    task.load_data()
    assert differences(task) == ["there is no split 'test'"]


def test_a_task_that_the_folder_lacks_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data of STS12 or mteb/sts12-sts"):
        use_local(mteb.get_task("STS12"), LocalData(tmp_path))
    with pytest.raises(NotADirectoryError, match="nowhere"):
        LocalData(tmp_path / "nowhere")


def test_the_revision_follows_the_content(tmp_path):
    data = LocalData(tmp_path)
    _jsonl(tmp_path / "A.jsonl", PAIRS)
    first = data.revision(["A"])
    assert data.revision(["A"]) == first
    _jsonl(tmp_path / "A.jsonl", PAIRS[1:])
    assert data.revision(["A"]) != first
    assert data.revision(["B", "A"]) == data.revision(["A"])


def test_a_retrieval_task_finds_its_configurations_in_the_folder(tmp_path):
    root = tmp_path / "mteb" / "nfcorpus"
    _jsonl(root / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": f"document {i}"} for i in range(4)])
    _jsonl(root / "queries.jsonl", [{"_id": "q", "text": "a question"}])
    _jsonl(root / "qrels" / "test.jsonl", [{"query-id": "q", "corpus-id": "d2", "score": 1}])
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: qrels/test.jsonl\n"
        "- config_name: corpus\n  data_files:\n  - split: corpus\n    path: corpus.jsonl\n"
        "- config_name: queries\n  data_files:\n  - split: queries\n    path: queries.jsonl\n---\n",
        encoding="utf-8",
    )
    task = use_local(mteb.get_task("NFCorpus"), LocalData(tmp_path))
    task.load_data()
    assert [len(task.dataset["default"]["test"][part]) for part in ("corpus", "queries")] == [4, 1]


def test_results_on_local_data_are_not_submitted(tmp_path):
    for name, revision in (("One", "local-0123456789abcdef"), ("Two", "0" * 40)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"dataset_revision": revision}), encoding="utf-8")
    one_version([tmp_path / "Two.json"])
    with pytest.raises(ValueError, match=r"1 tasks were measured on local data .*One"):
        one_version([tmp_path / "One.json", tmp_path / "Two.json"])


def test_the_harness_asks_for_a_configuration_of_a_data_set(tmp_path):
    _jsonl(tmp_path / "allenai" / "ai2_arc" / "ARC-Easy" / "test.jsonl", [{"question": "?"}])
    with harness_data(LocalData(tmp_path), "arc_easy") as revisions:
        found = datasets.load_dataset(path="allenai/ai2_arc", name="ARC-Easy")
    assert found["test"][0] == {"question": "?"}
    _jsonl(tmp_path / "arc_easy" / "test.jsonl", [{"question": "of the task"}])
    with harness_data(LocalData(tmp_path), "arc_easy"):
        found = datasets.load_dataset(path="allenai/ai2_arc", name="ARC-Easy")
    assert found["test"][0] == {"question": "of the task"}
    assert [one[:6] for one in revisions] == ["local-"]
    with harness_data(None, "arc_easy") as revisions:
        assert datasets.load_dataset.__module__ == "datasets.load"
    assert revisions == []
