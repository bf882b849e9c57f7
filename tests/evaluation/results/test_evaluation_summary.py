"""Tables, CSV and pictures of results."""

import csv
import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from ssmoe_embed.evaluation.results.folder import Rate, TaskScore
from ssmoe_embed.evaluation.results.summary import heatmap, labels, means, score_tables, scores_csv, slopes, summary

TASKS = {"A": "STS", "B": "STS", "C": "Clustering", "D": "Odd"}
METRICS = {"STS": "cosine_spearman", "Clustering": "v_measure", "Odd": "m"}


def score(task="A", value=0.5, **changes):
    fields = {
        "model": "ssmoe/x",
        "revision": "0123456789abcdef",
        "method": "smoe",
        "prompt": "none",
        "settings": {},
        "corruption": "clean",
        "task_type": TASKS[task],
        "metric": METRICS[TASKS[task]],
        "seconds": 1.5,
        "mteb_version": "2.0",
        "path": Path("clean/results/x/r/A.json"),
    }
    return TaskScore(task=task, score=value, **(fields | changes))


def column(text, header, row):
    """A cell of the Markdown table that has that column, by the row's first cells."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    head = next(i for i, line in enumerate(lines) if any(header in cell for cell in line))
    place = next(i for i, cell in enumerate(lines[head]) if header in cell)
    return next(line[place] for line in lines[head + 2 :] if line[: len(row)] == list(row))


@pytest.fixture
def scores():
    values = {"A": 0.1, "B": 0.4, "C": 0.9, "D": 0.6}
    complete = [score(task, value) for task, value in values.items()]
    partial = [score(task, value + 0.05, method="ssmoe") for task, value in values.items() if task != "B"]
    corrupt = [score(task, value / 2, corruption="replace@0.2") for task, value in values.items()]
    baseline = [score(task, value / 3, model="baseline/chance", method="", prompt="") for task, value in values.items()]
    return [*baseline, *partial, *corrupt, *complete]


def test_means_are_of_types_and_of_all_tasks_and_only_of_what_is_complete(scores):
    [clean, _] = score_tables(scores)
    rows = {row.method or row.model: row for row in clean.cells}
    assert list(rows) == ["smoe", "ssmoe", "baseline/chance"]
    shown = {cells[0]: list(cells[1:]) for cells in means(clean).rows}
    assert list(means(clean).columns[1:]) == [
        "Clustering (1)",
        "STS (2)",
        "Odd (1)",
        "mean of types",
        "mean of tasks (4)",
    ]
    values = [90, fmean([10, 40]), 60, fmean([90, 25, 60]), fmean([10, 40, 90, 60])]
    assert shown["ssmoe/x · smoe"] == [f"{value:.1f}" for value in values]
    assert shown["ssmoe/x · ssmoe"] == ["95.0", "–", "65.0", "–", "–"]


def test_the_markdown_names_metrics_corruptions_and_their_realised_rate(scores):
    text = summary(scores, [Rate("replace@0.2", "A", 0.2, 100, 25), Rate("replace@0.2", "B", 0.2, 100, 17)]).markdown()
    clean, corrupt = text.split("## replace@0.2")
    assert column(clean, "C (v_measure)", ["ssmoe/x", "smoe"]) == "90.0"
    assert column(clean, "B (cosine_spearman)", ["ssmoe/x", "ssmoe"]) == "–"
    assert column(corrupt, "C (v_measure)", ["ssmoe/x", "smoe"]) == "45.0"
    assert "realised 0.2100 (42 of 200 words)" in corrupt
    assert "realised" not in clean


def test_revisions_are_named_only_where_there_are_several():
    one, two = score(), score(revision="fedcba9876543210")
    assert [row.model for row in score_tables([one])[0].cells] == ["ssmoe/x"]
    assert [row.model for row in score_tables([one, two])[0].cells] == ["ssmoe/x@0123456", "ssmoe/x@fedcba9"]


def test_names_of_rows_leave_out_what_all_models_have_in_common():
    both = [
        score(settings={"alpha": 0.7}),
        score(settings={"alpha": 0.7}, method="ev"),
        score(model="baseline/x", method=""),
    ]
    names, common = labels(list(score_tables(both)[0].cells))
    assert list(names.values()) == ["ssmoe/x · smoe", "ssmoe/x · ev", "baseline/x"]
    assert common == "prompt none, alpha=0.7"


def test_a_prompt_with_a_bar_does_not_break_the_table():
    text = summary([score(prompt="a|{text}")]).markdown()
    header, _, row = next(part for part in text.split("\n\n") if "{text}" in part).strip().splitlines()
    assert "a\\|{text}" in row
    assert row.replace("\\|", "").count("|") == header.count("|")


def test_the_csv_has_one_score_a_line_with_all_fields(scores):
    rows = list(csv.DictReader(io.StringIO(scores_csv(scores))))
    assert len(rows) == len(scores)
    for row, one in zip(rows, scores, strict=True):
        assert float(row["score"]) == one.score
        assert json.loads(row["settings"]) == one.settings
        assert {row[name] for name in ("model", "task", "metric")} == {one.model, one.task, one.metric}


def test_corruptions_are_ordered_by_operation_and_rate():
    names = ["insert@0.05", "replace@0.4", "clean", "replace@0.05", "insert@1", "replace@0.05,seed=1"]
    ordered = [table.corruption for table in score_tables([score(corruption=name) for name in names])]
    assert ordered == ["clean", "replace@0.05", "replace@0.05,seed=1", "replace@0.4", "insert@0.05", "insert@1"]


def test_the_pictures_are_drawn_also_of_many_tasks_and_of_gaps(scores):
    many = [replace(score(), task=f"Task{i}", task_type=f"T{i % 9}") for i in range(80)]
    for table in (score_tables(scores)[0], score_tables(many)[0]):
        image = imread(io.BytesIO(heatmap(table)))
        assert image.shape[0] > 100
        assert image[..., :3].std() > 0.01
    drawn = slopes(score_tables(scores))
    assert imread(io.BytesIO(drawn))[..., :3].std() > 0.01


def test_slopes_have_rates_to_scale_and_intervals_of_the_change_over_tasks(monkeypatch):
    bars, places = [], []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, yerr, **_: bars.append((x[0], y[0], yerr)))
    original = Axes.set_xticks
    monkeypatch.setattr(
        Axes, "set_xticks", lambda self, x, *a, **k: places.append(list(x)) or original(self, x, *a, **k)
    )
    values = {"clean": (0.9, 0.7, 0.5, 0.2), "replace@0.1": (0.8, 0.6, 0.4, 0.1), "replace@0.4": (0.8, 0.3, 0.5, 0.2)}
    slopes(
        score_tables(
            [
                score(task, value, corruption=name, task_type="STS", metric="cosine_spearman")
                for name, row in values.items()
                for task, value in zip("ABCD", row, strict=True)
            ]
        )
    )
    assert places[-1] == [0, 0.1, 0.4]
    (first, _, equal), (second, mean, ends) = bars
    assert (first, second) == (0.1, 0.4)
    assert equal == [[pytest.approx(0, abs=1e-9)], [pytest.approx(0, abs=1e-9)]]  # every task lost the same
    changes = [-10, -40, 0, 0]
    means = sorted(fmean(drawn) for drawn in product(changes, repeat=4))
    low, high = (means[round(share * (len(means) - 1))] for share in (0.025, 0.975))
    assert (mean - ends[0][0], mean + ends[1][0]) == (
        pytest.approx(57.5 + low, abs=1),
        pytest.approx(57.5 + high, abs=1),
    )


def test_there_are_no_slopes_without_clean_and_corrupted_texts():
    assert slopes(score_tables([score()])) is None
    assert slopes(score_tables([score(corruption="replace@0.1")])) is None
