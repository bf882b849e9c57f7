"""benchmarks/routers.py on a small model and a few pairs: what is chosen where, going on, refusals and the report."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("mteb")
pytest.importorskip("lm_eval")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHOWN = ["--routings", "hash", "usmoe:rate=0.3", "steer", "--baselines", "mean"]


@pytest.fixture
def routers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import routers

    monkeypatch.setattr(routers, "sample_texts", lambda: [f"text number {i} of them" for i in range(40)])
    monkeypatch.setattr(routers, "_ROUNDS", 1)
    monkeypatch.setattr(routers, "_DOMAIN", 16)
    yield routers
    for name in {"routers", "routers_report", "measuring"} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture
def tasks(tmp_path):
    words = ["cat", "dog", "tree", "house", "river", "stone", "runs", "sleeps", "falls", "sings"]
    draw = random.Random(0)

    def text():
        return " ".join(draw.sample(words, 3))

    pairs = [{"sentence1": text(), "sentence2": text(), "score": i % 6} for i in range(60)]
    labelled = [{"text": text(), "label": i % 6, "label_text": str(i % 6)} for i in range(120)]
    for name, rows in {
        "STSBenchmark/test": pairs,
        "STSBenchmark/validation": pairs[::-1],
        "EmotionClassification/train": labelled,
        "EmotionClassification/test": labelled[:40],
    }.items():
        file = tmp_path / "tasks" / f"{name}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return tmp_path / "tasks"


@pytest.fixture
def places(built, olmoe, tasks, tmp_path):
    work = tmp_path / "work"
    return ["--model", str(built), "--base", str(olmoe), "--work", str(work), "--tasks", str(tasks)]


@pytest.mark.slow
def test_rows_are_chosen_on_development_pairs_reported_on_test_data_and_kept(
    routers, places, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        sys.modules["routers_report"],
        "METHODS",
        {name: sys.modules["routers_report"].METHODS[name] for name in ("smoe", "router")},
    )
    monkeypatch.setattr(routers, "PAPER_ROUTINGS", ("original",))
    text = tmp_path / "held-out.txt"
    text.write_text("The dog runs and the cat sleeps by the river. " * 20, encoding="utf-8")
    options = [*places, *SHOWN, "--every", "2", "--harness", "ssmoe_dictionary", "--limit", "2", "--text", str(text)]
    routers.main(["measure", *options])
    said = capsys.readouterr().out
    assert "min left" in said
    assert said.count(": done") == 5 + 4  # groups of rows, and language models
    stamps = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json") if path.parent.name != "work"
    }
    routers.main(["measure", *options, "--stages", "embeddings", "language"])
    assert {path: path.stat().st_mtime_ns for path in stamps if path.exists()} == stamps
    capsys.readouterr()
    routers.main(["report", *options, "--output", str(tmp_path / "routers.md")])
    shown = (tmp_path / "routers.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == shown
    rows = {line.split("|")[1].strip(): line for line in reversed(shown.splitlines()) if line.startswith("|")}
    assert {"smoe", "hash", "usmoe:rate=0.3", "steer", "mean", "original", "usmoe:causal=true,rate=0.3"} <= rows.keys()
    assert rows["hash"].count("[") == rows["steer"].count("[") == 3
    assert "Every 2nd pair" in shown


def test_a_row_takes_the_score_with_its_own_settings_and_calibration(routers):
    found = {row.name: row for row in routers.rows(["usmoe:rate=0.3"], ["mean"])}
    assert found["usmoe:rate=0.3"].run("none").overrides == {"routing": "usmoe:rate=0.3", "calibration": "none"}
    assert found["mean"].run("standardize").method is None
    assert found["smoe"].group == found["moee"].group == found["ev"].group != found["ssmoe"].group
    assert len({row.group for row in found.values()}) == 5
