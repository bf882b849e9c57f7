"""Two methods beside one another: differences, intervals and p-values."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from evaluation_tasks import rated_pairs, renamed
from mteb.mocks import MockMultilingualSTSTask
from scipy.stats import spearmanr

from ssmoe_embed.common.tables import signed
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.evaluation.results.folder import ResultFolder
from ssmoe_embed.evaluation.significance.comparison import compare_methods, differences_csv, report

CORRUPT = "replace@0.015"


@pytest.fixture(scope="module")
def measured(built, tmp_path_factory):
    """Two methods and a baseline on two tasks, with their predictions; never change it."""
    tasks = [rated_pairs(), MockMultilingualSTSTask()]
    runs = grid(["ssmoe", "smoe", "router"], corruptions=["none", CORRUPT])
    folder = tmp_path_factory.mktemp("measured")
    report = evaluate(
        [built], tasks, runs, folder, baselines=[], options=EvaluationOptions(predictions=True, progress=False)
    )
    assert not report.failures
    return report.folder, tasks


def ours(lines, task="MockSTSTask", corruption="clean"):
    (found,) = [one for one in lines if (one.task, one.first.corruption) == (task, corruption)]
    return found


def test_the_difference_interval_and_p_value_are_those_of_an_independent_bootstrap(measured):
    folder, tasks = measured
    found = ours(compare_methods(folder, "ssmoe", "smoe", tasks=tasks, resamples=2000)).bootstrap
    scores = {s.method: s for s in folder.scores() if (s.task, s.corruption) == ("MockSTSTask", "clean")}
    assert found.difference == pytest.approx(scores["ssmoe"].score - scores["smoe"].score, abs=1e-6)
    gold = np.array(tasks[0].dataset["test"]["score"])
    cosines = {}
    for method in ("ssmoe", "smoe"):
        content = json.loads(folder.prediction_file(scores[method]).read_text(encoding="utf-8"))
        cosines[method] = np.array(content["default"]["test"]["cosine_scores"]).ravel()
    draw = np.random.default_rng(1)
    differences = []
    for _ in range(1000):
        rows = draw.integers(0, 40, 40)
        ssmoe, smoe = (spearmanr(cosines[method][rows], gold[rows]).statistic for method in ("ssmoe", "smoe"))
        differences.append(ssmoe - smoe)
    low, high = np.percentile(differences, [2.5, 97.5])
    width = high - low
    assert (found.low, found.high) == (pytest.approx(low, abs=0.15 * width), pytest.approx(high, abs=0.15 * width))
    share = min(np.mean(np.array(differences) <= 0), np.mean(np.array(differences) >= 0))
    assert found.p_value == pytest.approx(2 * share, abs=0.1)
    assert found.examples == 40


def test_swapping_the_methods_turns_the_difference_round(measured):
    folder, tasks = measured
    one = ours(compare_methods(folder, "ssmoe", "smoe", tasks=tasks, resamples=500)).bootstrap
    other = ours(compare_methods(folder, "smoe", "ssmoe", tasks=tasks, resamples=500)).bootstrap
    assert other.difference == pytest.approx(-one.difference)
    assert (other.low, other.high) == (pytest.approx(-one.high), pytest.approx(-one.low))


def test_every_corruption_and_every_subset_of_a_task_is_a_line(measured):
    folder, tasks = measured
    lines = compare_methods(folder, "ssmoe", "router", tasks=tasks, resamples=200)
    subsets = tasks[1].hf_subsets
    assert len(subsets) > 1
    names = {"MockSTSTask", *(f"MockMultilingualSTSTask test/{subset}" for subset in subsets)}
    assert {(one.task, one.first.corruption) for one in lines} == {(n, c) for n in names for c in ("clean", CORRUPT)}
    clean = compare_methods(folder, "ssmoe", "router", tasks=tasks, corruption="clean", resamples=200)
    assert {one.first.corruption for one in clean} == {"clean"}


def test_adjusted_p_values_follow_holm(measured):
    folder, tasks = measured
    lines = [one for one in compare_methods(folder, "ssmoe", "smoe", tasks=tasks, resamples=200) if one.bootstrap]
    order = sorted(lines, key=lambda one: one.bootstrap.p_value)
    expected, running = [], 0.0
    for position, one in enumerate(order):
        running = max(running, min(1.0, (len(order) - position) * one.bootstrap.p_value))
        expected.append(running)
    assert [one.adjusted for one in order] == pytest.approx(expected)


def test_what_was_not_measured_or_not_alike_is_refused(measured, tmp_path):
    folder, tasks = measured
    with pytest.raises(ValueError, match=r"'ev' is not known; choose one of 'router', 'smoe', 'ssmoe'"):
        compare_methods(folder, "ssmoe", "ev", tasks=tasks)
    with pytest.raises(ValueError, match="ssmoe cannot be compared with itself"):
        compare_methods(folder, "ssmoe", "ssmoe", tasks=tasks)
    with pytest.raises(ValueError, match=r"model='local/mdel' is not known.*Did you mean 'local/model'"):
        compare_methods(folder, "ssmoe", "smoe", tasks=tasks, model="local/mdel")
    with pytest.raises(
        ValueError, match=r"no results of task Other here, only of MockMultilingualSTSTask, MockSTSTask"
    ):
        compare_methods(folder, "ssmoe", "smoe", tasks=[renamed(MockMultilingualSTSTask(), "Other")])
    with pytest.raises(ValueError, match=r"no results of corruption insert@0.2 here, only of clean, replace@0.015"):
        compare_methods(folder, "ssmoe", "smoe", tasks=tasks, corruption="insert@0.2")
    with pytest.raises(ValueError, match="nothing was measured"):
        compare_methods(ResultFolder(tmp_path), "ssmoe", "smoe")


def test_a_task_whose_predictions_are_gone_says_so_and_the_others_are_compared(measured, tmp_path):
    folder, tasks = measured
    shutil.copytree(folder.path, tmp_path / "copy")
    copy = ResultFolder(tmp_path / "copy")
    for score in copy.scores():
        if (score.task, score.method) == ("MockSTSTask", "smoe"):
            copy.prediction_file(score).unlink()
    lines = compare_methods(copy, "ssmoe", "smoe", tasks=tasks, resamples=200)
    gone = ours(lines)
    assert gone.bootstrap is None
    assert "no predictions of smoe were kept; evaluate with --predictions" in report(lines, "ssmoe", "smoe").markdown()
    others = [one for one in lines if one.task != "MockSTSTask"]
    assert others
    assert all(one.adjusted is not None for one in others if one.bootstrap)


def test_tables_of_two_methods_say_the_same(measured):
    folder, tasks = measured
    lines = compare_methods(folder, "ssmoe", "smoe", tasks=tasks, resamples=200)
    rows = list(csv.DictReader(io.StringIO(differences_csv(lines, "ssmoe", "smoe"))))
    found = ours(lines).bootstrap
    (row,) = [row for row in rows if (row["task"], row["corruption"]) == ("MockSTSTask", "clean")]
    assert float(row["difference"]) == pytest.approx(found.difference, abs=1e-6)
    assert float(row["first_score"]) - float(row["second_score"]) == pytest.approx(found.difference, abs=1e-5)
    assert float(row["p_value"]) == pytest.approx(found.p_value, abs=1e-6)
    shown = [text for text in report(lines, "ssmoe", "smoe").markdown().splitlines() if "| MockSTSTask" in text]
    assert signed(100 * found.difference, 2) in shown[0]
