"""Measured scores beside the paper's, and two methods beside one another."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.mocks.mock_tasks import MockMultilingualSTSTask, MockSTSTask
from mteb.results import TaskResult
from rich.console import Console
from scipy.stats import spearmanr
from typer.testing import CliRunner

import ssmoe_embed
from ssmoe_embed.cli.app import app
from ssmoe_embed.evaluation import method_table
from ssmoe_embed.evaluation.comparison import compare_with_paper
from ssmoe_embed.evaluation.comparison_table import cell, csv_text, markdown, rich_tables, signed
from ssmoe_embed.evaluation.method_comparison import compare_methods
from ssmoe_embed.evaluation.models import EvaluatedModel
from ssmoe_embed.evaluation.paper import DATASETS, METRICS, OVERALL, datasets, published
from ssmoe_embed.evaluation.report import Options
from ssmoe_embed.evaluation.results import ResultFolder, Score
from ssmoe_embed.evaluation.runner import evaluate
from ssmoe_embed.evaluation.runs import Run, grid

CORRUPT = "replace@0.015"


def score(dataset, points, *, method="ssmoe", prompt="none", corruption="clean", model="ssmoe/olmoe-7b", **changes):
    values = {
        "model": model,
        "revision": "r1",
        "method": method,
        "prompt": prompt,
        "settings": {},
        "corruption": corruption,
        "task": dataset.task,
        "task_type": dataset.category,
        "metric": dataset.metric,
        "score": points / 100,
        "seconds": 1.0,
        "mteb_version": "2.26.24",
        "path": Path("x.json"),
    }
    return Score(**values | changes)


def every(offset=0.0, **kwargs):
    """A score for every dataset of the paper, all different."""
    return [score(dataset, 20 + position + offset, **kwargs) for position, dataset in enumerate(DATASETS)]


def paper_score(category, task, *, method="ssmoe", prompt="none", condition="clean", model="OLMoE-7B"):
    (found,) = [
        p.score
        for p in published()
        if (p.model, p.category, p.task, p.method, p.prompt, p.condition)
        == (model, category, task, method, prompt, condition)
    ]
    return found


def line(comparison, category, task, *, method="ssmoe", corruption="clean", prompt="none", settings=""):
    wanted = (category, task, method, corruption, prompt, settings)
    (found,) = [
        row
        for row in comparison.rows
        if (row.category, row.task, row.method, row.setup.corruption, row.setup.prompt, row.setup.settings) == wanted
    ]
    return found


def test_a_complete_run_is_compared_task_by_task_with_means_of_categories_and_of_all():
    (comparison,) = compare_with_paper(every())
    means = []
    for category in METRICS:
        values = []
        for dataset in datasets(category):
            row = line(comparison, category, dataset.task)
            values.append(20 + DATASETS.index(dataset))
            assert row.measured == pytest.approx(values[-1])
            assert row.published == paper_score(category, dataset.task)
            assert row.difference == pytest.approx(values[-1] - row.published)
        mean = line(comparison, category, None)
        means.append(fmean(values))
        assert (mean.covered, mean.total) == (len(values), len(values))
        assert mean.measured == pytest.approx(means[-1])
        assert mean.published == paper_score(category, None)
    overall = line(comparison, OVERALL, None)
    assert (overall.covered, overall.total) == (19, 19)
    assert overall.measured == pytest.approx(fmean(means))
    assert overall.published == paper_score(OVERALL, None) == 39.7


def test_a_partial_category_is_compared_with_the_papers_mean_of_the_same_tasks():
    some = [score(dataset, 50) for dataset in DATASETS if dataset.task in ("STS12", "STS13")]
    (comparison,) = compare_with_paper(some)
    mean = line(comparison, "STS", None)
    expected = fmean([paper_score("STS", "STS12"), paper_score("STS", "STS13")])
    assert (mean.covered, mean.total) == (2, 8)
    assert (mean.measured, mean.published) == (pytest.approx(50), pytest.approx(expected))
    overall = line(comparison, OVERALL, None)
    assert (overall.measured, overall.published, overall.covered) == (pytest.approx(50), pytest.approx(expected), 2)


def test_a_partial_category_of_corrupt_texts_is_compared_with_nothing_as_the_paper_has_only_its_mean():
    some = [score(DATASETS[0], 50, corruption=CORRUPT)]
    (comparison,) = compare_with_paper(some)
    assert line(comparison, "Classification", "EmotionClassification", corruption=CORRUPT).published is None
    mean = line(comparison, "Classification", None, corruption=CORRUPT)
    assert (mean.measured, mean.published, mean.difference) == (50, None, None)
    (comparison,) = compare_with_paper([score(d, 50, corruption=CORRUPT) for d in datasets("Classification")])
    mean = line(comparison, "Classification", None, corruption=CORRUPT)
    assert mean.published == paper_score("Classification", None, condition="corrupt") == 39.7


def test_with_prompteol_the_papers_means_follow_from_its_tasks():
    (comparison,) = compare_with_paper(every(prompt="prompteol"))
    values = [paper_score("STS", dataset.task, prompt="prompteol") for dataset in datasets("STS")]
    assert line(comparison, "STS", None, prompt="prompteol").published == pytest.approx(fmean(values))


def test_what_was_not_measured_is_shown_as_missing_with_what_the_paper_has():
    (comparison,) = compare_with_paper([score(DATASETS[0], 50)])
    row = line(comparison, "Clustering", "MedrxivClusteringS2S", method="smoe")
    assert (row.measured, row.covered) == (None, 0)
    assert cell(row) == "– (17.6)"
    assert line(comparison, OVERALL, None, method="smoe").published == paper_score(OVERALL, None, method="smoe")


def test_methods_can_be_chosen_and_unknown_ones_are_refused():
    scores = every() + every(1, method="smoe") + every(2, method="ev")
    (comparison,) = compare_with_paper(scores, methods=["ssmoe", "smoe"])
    assert {str(row.method) for row in comparison.rows} == {"ssmoe", "smoe"}
    with pytest.raises(ValueError, match=r"method='ssmo' is not known.*Did you mean"):
        compare_with_paper(scores, methods=["ssmo"])


def test_every_measured_corruption_is_shown_unless_one_is_named():
    scores = [s for name in ("clean", CORRUPT, "insert@0.2") for s in every(corruption=name)]
    (all_,) = compare_with_paper(scores)
    assert [setup.corruption for setup in all_.setups] == ["clean", "insert@0.2", CORRUPT]
    (one,) = compare_with_paper(scores, corrupt=CORRUPT)
    assert [setup.corruption for setup in one.setups] == ["clean", CORRUPT]
    with pytest.raises(
        ValueError, match=r"corrupt='replace@0.5' is not known; choose one of 'insert@0.2', 'replace@0.015'"
    ):
        compare_with_paper(scores, corrupt="replace@0.5")


def test_settings_that_deviate_get_a_table_of_their_own():
    scores = [*every(), *every(5, settings={"alpha": 0.9})]
    (comparison,) = compare_with_paper(scores)
    assert [setup.settings for setup in comparison.setups] == ["", "alpha=0.9"]
    changed = line(comparison, OVERALL, None, settings="alpha=0.9").measured
    assert changed - line(comparison, OVERALL, None).measured == pytest.approx(5)


def test_revisions_are_never_mixed():
    first, second = compare_with_paper([*every(revision="a"), *every(9, revision="b")])
    assert (first.revision, second.revision) == ("a", "b")
    assert line(second, OVERALL, None).measured - line(first, OVERALL, None).measured == pytest.approx(9)


def test_a_model_that_the_paper_does_not_have_is_refused_with_those_it_has():
    scores = every(model="ssmoe/tiny")
    with pytest.raises(ValueError, match=r"\(ssmoe/tiny\); it has OLMoE-7B \(ssmoe/olmoe-7b\), Qwen-MoE-7B.*--as"):
        compare_with_paper(scores)
    with pytest.raises(ValueError, match=r"'ssmoe/tiny' is not known; choose one of 'ssmoe/olmoe-7b'"):
        compare_with_paper(scores, model="ssmoe/tiny")
    with pytest.raises(ValueError, match="was measured"):
        compare_with_paper([], model="ssmoe/olmoe-7b")


def test_a_model_under_another_name_can_stand_for_one_of_the_papers():
    scores = every(model="local/mine") + every(3, model="peer/chance", method="")
    (comparison,) = compare_with_paper(scores, model="local/mine", stands_for="deepseekmoe-16b")
    assert (comparison.model, comparison.paper.recipe) == ("local/mine", "ssmoe/deepseek-moe-16b")
    assert line(comparison, OVERALL, None).published == 41.1
    with pytest.raises(ValueError, match="Several models were measured"):
        compare_with_paper(scores, stands_for="OLMoE-7B")


def test_another_metric_than_the_papers_is_left_out_and_said():
    scores = [*every()[1:], score(DATASETS[0], 50, metric="f1")]
    (comparison,) = compare_with_paper(scores)
    assert line(comparison, "Classification", "EmotionClassification").measured is None
    assert any("EmotionClassification (f1)" in note for note in comparison.notes)


def test_notes_tell_of_several_versions_of_mteb_unknown_corruption_and_the_papers_misprints():
    scores = [*every(), *every(corruption=CORRUPT, mteb_version="2.27.0")]
    (comparison,) = compare_with_paper(scores)
    text = " ".join(comparison.notes)
    assert "2.26.24, 2.27.0" in text
    assert "does not tell how it corrupts" in text
    assert "prints 30.6 for Summarization with ssmoe; its tables of single tasks give 31.00" in text


def test_the_terminal_shows_measured_published_and_difference():
    (comparison,) = compare_with_paper(every())
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(rich_tables(comparison))
    text = console.export_text()
    (emotion,) = [row for row in text.splitlines() if "EmotionClassification" in row]
    assert "20.0 (37.4, −17.4)" in emotion
    assert "– (24.5)" in emotion
    assert "ssmoe 19" in text


def test_csv_and_markdown_say_the_same_as_the_rows():
    comparisons = compare_with_paper([*every(), *every(corruption=CORRUPT)])
    rows = list(csv.DictReader(io.StringIO(csv_text(comparisons))))
    assert len(rows) == len(comparisons[0].rows) == 2 * 5 * 26
    for read, row in zip(rows, comparisons[0].rows, strict=True):
        assert (read["category"], read["task"] or None, read["method"]) == (row.category, row.task, str(row.method))
        assert read["measured"] == ("" if row.measured is None else f"{row.measured:.4f}")
        assert read["published"] == ("" if row.published is None else f"{row.published:.4f}")
    text = markdown(comparisons)
    widths = {row.count("|") for row in text.splitlines() if row.startswith("|")}
    assert widths == {7}
    assert "| **Overall** |" in text
    assert "corrupt: replace@0.015, prompt none" in text


def test_a_difference_that_rounds_to_zero_has_no_sign():
    assert [signed(value) for value in (0.04, -0.04, 1.26, -1.24)] == ["0.0", "0.0", "+1.3", "−1.2"]


# --- two methods ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(built, tmp_path_factory):
    """Two methods and a peer on two tasks, with their predictions; never change it."""
    tasks = [rated_pairs(), MockMultilingualSTSTask()]
    runs = grid(["ssmoe", "smoe", "router"], corruptions=["none", CORRUPT])
    folder = tmp_path_factory.mktemp("measured")
    report = evaluate([built], tasks, runs, folder, peers=[], options=Options(predictions=True, progress=False))
    assert not report.failures
    return report.folder, tasks


def rated_pairs():
    """A task of forty pairs of sentences, so that a bootstrap has something to draw."""
    task = MockSTSTask()
    task.load_data()
    words = ["rain", "soup", "gate", "letter", "dog", "train", "music", "stone"]
    first = [f"The {words[i % 8]} is {words[(3 * i) % 8]} today." for i in range(40)]
    second = [f"A {words[(i * i) % 8]} was {words[(5 * i) % 8]} yesterday." for i in range(40)]
    rows = {"sentence1": first, "sentence2": second, "score": [float((7 * i) % 11) for i in range(40)]}
    task.dataset = {"test": Dataset.from_dict(rows)}
    return task


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
        content = json.loads(folder.prediction_file(scores[method]).read_text())
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
    assert "no predictions of smoe were kept; evaluate with --predictions" in method_table.markdown(
        lines, "ssmoe", "smoe"
    )
    others = [one for one in lines if one.task != "MockSTSTask"]
    assert others
    assert all(one.adjusted is not None for one in others if one.bootstrap)


def test_tables_of_two_methods_say_the_same(measured):
    folder, tasks = measured
    lines = compare_methods(folder, "ssmoe", "smoe", tasks=tasks, resamples=200)
    rows = list(csv.DictReader(io.StringIO(method_table.csv_text(lines, "ssmoe", "smoe"))))
    found = ours(lines).bootstrap
    (row,) = [row for row in rows if (row["task"], row["corruption"]) == ("MockSTSTask", "clean")]
    assert float(row["difference"]) == pytest.approx(found.difference, abs=1e-6)
    assert float(row["first_score"]) - float(row["second_score"]) == pytest.approx(found.difference, abs=1e-5)
    assert float(row["p_value"]) == pytest.approx(found.p_value, abs=1e-6)
    (line_,) = [text for text in method_table.markdown(lines, "ssmoe", "smoe").splitlines() if "| MockSTSTask" in text][
        :1
    ]
    assert signed(100 * found.difference, 2) in line_


def test_the_command_compares_two_methods_and_writes_the_table(measured, tmp_path, monkeypatch):
    folder, tasks = measured
    monkeypatch.setattr(
        "ssmoe_embed.evaluation.tasks.find_tasks", lambda names: [t for t in tasks if t.metadata.name in names]
    )
    args = ["compare", str(folder.path), "--methods", "ssmoe", "smoe", "--tasks", "MockSTSTask", "--resamples", "200"]
    ran = CliRunner().invoke(app, [*args, "-o", str(tmp_path / "out.csv")])
    assert ran.exit_code == 0, ran.output
    assert "local/model, clean, prompt none" in ran.output
    assert "cosine_spearman" in ran.output
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Name what to compare"),
        (["--methods", "ssmoe"], "Name what to compare"),
        (["--with", "papr"], "Did you mean 'paper'"),
        (["--with", "paper"], r"it has OLMoE-7B \(ssmoe/olmoe-7b\)"),
        (["--with", "paper", "--tasks", "STS12"], "shows all its tasks"),
        (["--as", "OLMoE-7B", "--methods", "ssmoe", "smoe"], "add --with paper"),
        (["--with", "paper", "-o", "table.xlsx"], "neither a .md nor a .csv"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(measured, args, message):
    folder, _ = measured
    ran = CliRunner().invoke(app, ["compare", str(folder.path), *args])
    assert ran.exit_code == 1
    assert re.search(message, str(ran.exception))


def test_the_command_compares_a_named_model_with_the_paper_and_keeps_an_existing_file(measured, tmp_path):
    folder, _ = measured
    out = tmp_path / "out.md"
    args = [
        "compare",
        str(folder.path),
        "--with",
        "paper",
        "--model",
        "local/model",
        "--as",
        "OLMoE-7B",
        "-o",
        str(out),
    ]
    ran = CliRunner().invoke(app, args)
    assert ran.exit_code == 0, ran.output
    assert "None of the paper's 19 tasks was measured" in out.read_text()
    assert "exists already" in str(CliRunner().invoke(app, args).exception)


def test_the_command_shows_a_result_file_of_mteb_beside_the_papers_score(built, tmp_path):
    model = EvaluatedModel.of(ssmoe_embed.load(built, progress=False))
    meta = replace(model, name="ssmoe/olmoe-7b").meta(Run(method="ssmoe", prompt="none"))
    task = mteb.get_task("EmotionClassification")
    entry = {"main_score": 0.5, "accuracy": 0.5, "hf_subset": "default", "languages": ["eng-Latn"]}
    measured_once = TaskResult.from_task_results(task, {"test": {"default": entry}}, evaluation_time=1.0)
    ResultFolder(tmp_path).cache().save_to_cache(measured_once, meta)
    out = tmp_path / "table.md"
    ran = CliRunner().invoke(app, ["compare", str(tmp_path), "--with", "paper", "--methods", "ssmoe", "-o", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "| EmotionClassification | 50.0 (37.4, +12.6) |" in out.read_text()
    assert "| **Classification mean** | **50.0 (37.4, +12.6)** |" in out.read_text()
    assert "tasks measured of 19: ssmoe 1" in out.read_text().lower()
