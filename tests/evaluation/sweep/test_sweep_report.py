"""A sweep's means, the settings it would choose on other tasks, and its tables and plot."""

import csv
import io

import pytest

from ssmoe_embed.evaluation.sweep.report import plot, report, scores_csv, write_report, x_axis
from ssmoe_embed.evaluation.sweep.running import MEAN, TEST_SET_WARNING, Axis, SweepResult, points


def result(axes, scores, names=("STS12", "STS13")):
    """A sweep's result without its runs; scores in the order of points and tasks."""
    keys = [(point, task) for point in points(axes) for task in names]
    there = {key: score for key, score in zip(keys, scores, strict=True) if score is not None}
    return SweepResult("ssmoe/tiny", tuple(axes), "clean", dict.fromkeys(names, "cosine_spearman"), there)


def test_the_mean_needs_every_task():
    measured = result([Axis("alpha", (0.0, 1.0))], [10, 20, 30, None])
    first, second = measured.points
    assert measured.score(first, MEAN) == 15
    assert measured.score(second, MEAN) is None
    assert measured.missing == [(second, "STS13")]
    assert measured.held_out() == []


def test_held_out_settings_are_chosen_without_the_task_they_are_scored_on():
    axes = [Axis("alpha", (0.0, 1.0))]
    measured = result(axes, [10, 90, 80, 20])  # STS12 likes 1.0, STS13 likes 0.0
    low, high = measured.points
    first, second = measured.held_out()
    assert (first.task, first.chosen, first.score, first.best) == ("STS12", low, 10, 80)
    assert (second.task, second.chosen, second.score, second.best) == ("STS13", high, 20, 90)


def test_markdown_warns_of_tuning_on_the_test_set_and_marks_the_best_of_each_column():
    text = report(result([Axis("alpha", (0.0, 1.0))], [10, 90, 80, 20])).markdown()
    assert TEST_SET_WARNING in text
    assert "| 0.0 | 10.00 | **90.00** | **50.00** |" in text
    assert "| 1.0 | **80.00** | 20.00 | **50.00** |" in text
    assert "| STS12 | alpha=0.0 | 10.00 | 80.00 |" in text


def test_the_papers_table_6_stands_beside_the_tasks_and_settings_that_it_has():
    names = ("EmotionClassification", "STS12")
    text = report(result([Axis("alpha", (0.0, 1.0))], [10, 90, 80, 20], names), with_paper=True).markdown()
    assert "| alpha | 0.9 | 32.7 |" in text
    assert "topc" not in text
    assert "| top_c |" not in text
    other = report(result([Axis("alpha", (0.0, 1.0))], [10, 90, 80, 20]), with_paper=True).markdown()
    assert "has none of these tasks and settings" in other


def test_csv_has_a_line_for_every_point_and_task():
    rows = list(csv.DictReader(io.StringIO(scores_csv(result([Axis("alpha", (0.0, 1.0))], [10, 20, 30, None])))))
    assert [(row["alpha"], row["task"], row["score"]) for row in rows] == [
        ("0.0", "STS12", "10.0000"),
        ("0.0", "STS13", "20.0000"),
        ("1.0", "STS12", "30.0000"),
        ("1.0", "STS13", ""),
    ]


def test_scores_are_plotted_against_alpha_else_numbers_else_the_longest_axis():
    alpha, top_c, prompt = (
        Axis("alpha", (0.0, 1.0)),
        Axis("top_c", (1, 2, 3)),
        Axis("prompt", ("none", "echo", "style", "tone")),
    )
    assert x_axis([top_c, alpha, prompt]) is alpha
    assert x_axis([prompt, top_c]) is top_c
    assert x_axis([prompt]) is prompt


@pytest.mark.parametrize(
    "axes", [[Axis("alpha", (0.0, 1.0))], [Axis("prompt", ("none", "echo"))], [Axis("top_c", (5, 50))]]
)
def test_the_report_is_written_with_a_plot(axes, tmp_path):
    written = write_report(result(axes, [10, 20, 30, None]), tmp_path, with_paper=True)
    assert sorted(path.name for path in written) == ["sweep.csv", "sweep.md", "sweep.png"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_mean_has_an_interval_of_its_change_over_three_tasks_or_more(monkeypatch):
    from matplotlib.axes import Axes

    bars = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, yerr, **_: bars.append((x[0], y[0], yerr)))
    axes = [Axis("alpha", (0.0, 1.0))]
    plot(result(axes, [10, 20, 30, 40]))
    assert bars == []
    plot(result(axes, [10, 20, 30, 15, 25, 35], ("A", "B", "C")))
    assert bars == [(1.0, 25, [[pytest.approx(0)], [pytest.approx(0)]])]  # all of them gain five


def test_the_plot_draws_the_measured_scores_and_the_papers(monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}
    original = Axes.plot

    def record(self, x, y, *args, **kwargs):
        drawn.setdefault(kwargs["label"], []).append((list(x), list(y)))
        return original(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", record)
    axes = [Axis("top_c", (5, 50)), Axis("alpha", (1.0, 0.0))]
    plot(result(axes, [10, 20, 30, 40], ("EmotionClassification",)), with_paper=True)
    assert drawn["top_c=5"] == [([0.0, 1.0], [20, 10])]
    assert drawn["top_c=50"] == [([0.0, 1.0], [40, 30])]
    ((_, scores),) = drawn["paper, OLMoE-7B (table 6)"]
    assert scores == [26.1, 27.5, 29.9, 30.2, 32.7, 28.9]
