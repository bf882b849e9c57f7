"""benchmarks/real.py on a small model and a few pairs: the stages, going on after an interruption, and the report."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("mteb")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import real

    monkeypatch.setattr(real, "_CALIBRATION", (24, 40))
    monkeypatch.setattr(real, "TOP_C", 2)
    monkeypatch.setattr(real, "_INSPECTED", 24)
    monkeypatch.setattr(real, "LAYERS", (-2,))
    monkeypatch.setattr(real, "RATES", {"replace": (0.5,), "insert": (0.5, 1.0)})
    monkeypatch.setattr(real, "BASELINES", ("tfidf-words",))
    first = {
        (run.method, *sorted(run.overrides)): run for run in reversed(real.candidates())
    }  # of each method and setting
    monkeypatch.setattr(real, "candidates", lambda: list(first.values())[::-1])
    yield real
    for name in {"real", "real_report", "measuring"} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture
def tasks(tmp_path):
    words = ["cat", "dog", "tree", "house", "river", "stone", "runs", "sleeps", "falls", "sings"]
    draw = random.Random(0)
    for name in ("BIOSSES/test", "STSBenchmark/test", "STSBenchmark/validation"):
        rows = [
            {"sentence1": " ".join(draw.sample(words, 3)), "sentence2": " ".join(draw.sample(words, 3)), "score": i % 6}
            for i in range(60)
        ]
        file = tmp_path / "tasks" / f"{name}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return tmp_path / "tasks"


@pytest.mark.slow
def test_settings_come_from_development_data_and_interrupted_work_goes_on(real, olmoe, tasks, tmp_path, capsys):
    places = ["--moe", str(olmoe), "--dense", str(olmoe), "--tasks", str(tasks), "--work", str(tmp_path / "work")]
    stages = ["models", "dev", "first", "beside", "rates", "corrupted", "inspect"]
    real.main(["measure", *places, "--stages", *stages])
    dev = real.ResultFolder(tmp_path / "work" / "dev").scores()
    chosen = json.loads((tmp_path / "work" / "settings.json").read_text(encoding="utf-8"))
    for method, settings in chosen.items():
        best = max(
            (one for one in dev if one.method == method and one.corruption == "clean"), key=lambda one: one.score
        )
        assert settings == {name: value for name, value in best.settings.items() if name in real.VARIED}
    results = real.ResultFolder(tmp_path / "work" / "embedding")
    before = {one.path: one.path.stat().st_mtime_ns for one in results.scores()}
    gone = next(path for path in before if path.name == "BIOSSES.json")
    content = json.loads(gone.read_text(encoding="utf-8"))["scores"]
    gone.unlink()
    real.main(["measure", *places, "--stages", *stages])
    assert json.loads(gone.read_text(encoding="utf-8"))["scores"] == content
    assert {path: path.stat().st_mtime_ns for path in before if path != gone} == {
        path: stamp for path, stamp in before.items() if path != gone
    }
    capsys.readouterr()
    split = [tmp_path / f"shared=8-experts=4-k=2-sharpness={one}-seed=0-steps=0.json" for one in (0.5, 1.0)]
    measured = {"similarity": 70.0, "cosine": 0.9, "entropy": [], "dead": 0}
    for file, worst in zip(split, (30.0, 40.0), strict=True):
        rows = [("dense", 20.0), ("4 of 4, equal weights", 20.0), ("2 of 4", worst)]
        file.write_text(
            json.dumps([measured | {"name": name, "perplexity": value} for name, value in rows]), encoding="utf-8"
        )
    real.main(["report", *places, "--split", *map(str, split), "--output", str(tmp_path / "real.md")])
    shown = (tmp_path / "real.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == shown
    divided = [line.split(" | ")[:4] for line in shown.splitlines() if "of 4" in line or "| dense" in line]
    assert divided == [
        ["| dense", "–", "20.00", "1.000"],
        ["| 4 of 4, equal weights", "–", "20.00", "1.000"],
        ["| 2 of 4", "0.5", "30.00", "1.500"],
        ["| 2 of 4", "1.0", "40.00", "2.000"],
    ]
    assert "mteb's tasks took 0.0 hours" in shown
    assert "local-" in shown
    assert "length of a row" in shown
    assert "| replace@0.5 |" in shown.split("## Routers")[0]
    assert len({one.corruption for one in results.scores()}) == 3, "clean, and one rate of each operation"
    assert "ssmoe-hidden" in shown.split("## Compared")[1]


@pytest.mark.slow
def test_the_ablation_is_on_every_fifth_test_pair_and_stands_beside_the_report(
    real, olmoe, tasks, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(real, "VARIANTS", ("permuted",))
    places = ["--moe", str(olmoe), "--dense", str(olmoe), "--tasks", str(tasks), "--work", str(tmp_path / "work")]
    stages = ["models", "ablation", "eigenvectors"]
    for _ in range(2):  # again, when the data of the other split are there too
        real.main(["measure", *places, "--dtype", "float32", "--stages", *stages])
    real.main(["report", *places, "--output", str(tmp_path / "real.md")])
    shown, dense = ((tmp_path / f"ablation_real_{name}.md").read_text(encoding="utf-8") for name in ("moe", "dense"))
    assert "| `permuted` |" in shown
    assert "STSBenchmark" in shown
    assert "| `original` |" in dense
    assert "`permuted`" not in dense
    thin = tmp_path / "work" / "thinned" / "STSBenchmark.test.jsonl.gz"
    whole = gzip.decompress((tasks / "STSBenchmark" / "test.jsonl.gz").read_bytes()).splitlines()
    assert gzip.decompress(thin.read_bytes()).splitlines() == whole[:: real.EVERY]
