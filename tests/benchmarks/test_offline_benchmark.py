import runpy
import sys
from pathlib import Path

import pytest

from ssmoe_embed.evaluation.tasks import offline

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "offline.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    monkeypatch.setattr(offline, "_added", {})  # tasks of one's own are known to the whole process
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_one_report_is_printed_and_written_and_nothing_is_measured_twice(monkeypatch, capsys, tmp_path):
    extra = tmp_path / "mine.jsonl"
    documents = '{"id": 1, "document": "tea"}\n{"id": 2, "document": "rice"}\n'
    extra.write_text(
        documents + '{"query": "tea", "relevant": [1]}\n{"query": "rice", "relevant": [2]}\n', encoding="utf-8"
    )
    output, results = tmp_path / "report.md", tmp_path / "results"
    common = ["--models", "--baselines", "chance", "tfidf-words", "--tasks", "WordRelatednessSTS", "--results", results]
    options = [*common, "--extra", extra, "--corrupt", "none", "--resamples", 100, "--output", output]
    run(monkeypatch, *options, "--compare", "tfidf-words:chance")
    printed = capsys.readouterr().out
    assert output.read_text(encoding="utf-8") == printed
    assert "| baseline/tfidf-words |" in printed
    assert "mine (ndcg_at_10)" in printed
    assert "tfidf-words − chance" in printed
    files = {path: path.stat().st_mtime_ns for path in results.rglob("*_predictions.json")}
    assert len(files) == 4
    run(monkeypatch, *options, "--compare", "tfidf-words:chance")
    assert capsys.readouterr().out == printed
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "table.csv"], "must end in .md"),
        (["--compare", "ssmoe"], "write two methods as ssmoe:smoe"),
        pytest.param(["--tasks", "WordRelatedSTS"], "WordRelatednessSTS", marks=pytest.mark.slow),
    ],
)
def test_wrong_arguments_are_named(monkeypatch, capsys, tmp_path, arguments, message):
    with pytest.raises((SystemExit, ValueError)) as error:
        run(monkeypatch, "--models", "--baselines", "--results", tmp_path, *arguments)
    assert message in f"{capsys.readouterr().err} {error.value}"
