import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "offline.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_one_table_is_printed_and_written(monkeypatch, capsys, tmp_path):
    extra = tmp_path / "mine.jsonl"
    extra.write_text('{"id": 1, "document": "tea"}\n{"id": 2, "document": "rice"}\n{"query": "tea", "relevant": [1]}\n')
    outputs = [tmp_path / "table.md", tmp_path / "table.json"]
    tasks = ["similarity", "mine"]
    run(monkeypatch, "--models", "chance", "tfidf", "--extra", extra, "--tasks", *tasks, "--output", *outputs)
    printed = capsys.readouterr().out
    header, rule, chance, tfidf = printed.splitlines()
    assert header == "| encoder | similarity (spearman) | mine (mrr@10) | mean |"
    assert set(rule) == {"|", "-"}
    assert chance.startswith("| chance | ")
    assert tfidf.split(" | ")[2] == "100.0 ± 0.0"
    assert outputs[0].read_text() == printed
    scores = json.loads(outputs[1].read_text())
    assert scores["tfidf"]["mine"]["recall@1"] == 1.0
    assert set(scores["chance"]["similarity"]) == {"spearman", "spearman_low", "spearman_high"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "nonsense"], "nonsense: the tasks are definition_to_example"),
        (["--output", "table.csv"], "must end in .md or .json"),
        (["--models", "minilm:prompt", "--tasks", "similarity"], "not of the form setting=value"),
    ],
)
def test_wrong_arguments_are_named(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *arguments)
    assert message in f"{capsys.readouterr().err} {error.value}"
