"""Measured scores compared with the paper's."""

import csv
import io
from pathlib import Path
from statistics import fmean

import pytest
from rich.console import Console

from ssmoe_embed.evaluation.paper.comparison import cell, compare_with_paper, comparisons_csv, report
from ssmoe_embed.evaluation.paper.embeddings import DATASETS, METRICS, OVERALL, datasets, published
from ssmoe_embed.evaluation.results.folder import TaskScore

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
    return TaskScore(**values | changes)


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
    scores = every(model="local/mine") + every(3, model="baseline/chance", method="")
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
    console.print(report(comparison).rich())
    text = console.export_text()
    (emotion,) = [row for row in text.splitlines() if "EmotionClassification" in row]
    assert "20.0 (37.4, −17.4)" in emotion
    assert "– (24.5)" in emotion
    assert "ssmoe 19" in text


def test_csv_and_markdown_say_the_same_as_the_rows():
    comparisons = compare_with_paper([*every(), *every(corruption=CORRUPT)])
    rows = list(csv.DictReader(io.StringIO(comparisons_csv(comparisons))))
    assert len(rows) == len(comparisons[0].rows) == 2 * 5 * 26
    for read, row in zip(rows, comparisons[0].rows, strict=True):
        assert (read["category"], read["task"] or None, read["method"]) == (row.category, row.task, str(row.method))
        assert read["measured"] == ("" if row.measured is None else f"{row.measured:.4f}")
        assert read["published"] == ("" if row.published is None else f"{row.published:.4f}")
    text = report(comparisons[0]).markdown()
    widths = {row.count("|") for row in text.splitlines() if row.startswith("|")}
    assert widths == {7}
    assert "| **Overall** |" in text
    assert "corrupt: replace@0.015, prompt none" in text


def test_the_rerouted_hidden_state_is_compared_with_the_papers_ssmoe():
    (comparison,) = compare_with_paper(every(method="ssmoe-hidden"))
    row = line(comparison, "STS", "STS12", method="ssmoe-hidden")
    assert row.published == paper_score("STS", "STS12")
    assert any("ssmoe-hidden" in note for note in comparison.notes)


@pytest.mark.parametrize("settings", [{}, {"instruction": "task"}])
def test_it_is_said_whether_an_instruction_stood_before_the_texts(settings):
    (comparison,) = compare_with_paper(every(settings=settings))
    assert any("Without a task instruction" in note for note in comparison.notes) == (not settings)
    assert {row.setup.settings for row in comparison.rows} == {"instruction=task" if settings else ""}
