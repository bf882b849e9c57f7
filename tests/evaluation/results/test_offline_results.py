"""The README's table of offline results: it is the report's, and the bundled model scores so when it is measured again."""

import re
from pathlib import Path

import pytest

import ssmoe_embed
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.evaluation.results.summary import score_tables

ROOT = Path(__file__).parents[3]
CORRUPT = "replace@0.015"
NAMES = {
    "chance": "baseline/chance",
    "TF-IDF, words": "baseline/tfidf-words",
    "TF-IDF, characters": "baseline/tfidf-chars",
    "same architecture, random weights": "baseline/random-weights",
    "all-MiniLM-L6-v2, the teacher": "sentence-transformers/all-MiniLM-L6-v2",
}
"""What the README calls a baseline → its name in the report; a method is called by its model and its own name."""
TYPES = ["Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS"]


def rows(text, heading, table=0):
    """The lines of a table under a heading, as lists of cells without bold or code."""
    part = re.split(rf"(?m)^#+ {re.escape(heading)}$", text)[1]
    lines = [found.group() for found in re.finditer(r"(?m)(^\|.*\n)+", part)][table].splitlines()
    return [[re.sub(r"[*`]", "", cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def readme_table():
    """For each encoder its means by type of task, of all tasks, and of all tasks on corrupted texts."""
    _, _, *lines = rows((ROOT / "README.md").read_text(encoding="utf-8"), "Measured offline")
    return {name.removesuffix(" (default)"): list(map(float, numbers)) for name, *numbers in lines}


def report_means(heading):
    """The report's means by encoder: those of the types in order, and that of the tasks."""
    head, _, *lines = rows((ROOT / "benchmarks" / "results" / "offline.md").read_text(encoding="utf-8"), heading)
    short = [name.partition(" (")[0] for name in head]
    columns = [short.index(name) for name in [*TYPES, "mean of tasks"]]
    return {", ".join(filter(None, line[:2])): [line[i] for i in columns] for line in lines}


def report_scores(heading, encoder):
    """An encoder's score on each task, as the report has them."""
    head, _, *lines = rows((ROOT / "benchmarks" / "results" / "offline.md").read_text(encoding="utf-8"), heading, 1)
    (line,) = (line for line in lines if tuple(line[:2]) == encoder)
    return {name.partition(" (")[0]: float(cell) for name, cell in zip(head[3:], line[3:], strict=True)}


def test_the_readmes_table_is_the_reports():
    clean, corrupt = report_means("clean"), report_means(CORRUPT)
    table = readme_table()
    assert len(table) == 11
    for name, numbers in table.items():
        reported = NAMES.get(name, name)
        assert [f"{number:.1f}" for number in numbers] == [*clean[reported], corrupt[reported][-1]], name


@pytest.mark.slow
def test_the_default_method_has_the_readmes_scores_on_all_offline_tasks(tmp_path):
    report = evaluate(["ssmoe/tiny"], ["offline"], grid(), tmp_path, options=EvaluationOptions(progress=False))
    assert report.failures == []
    (table,) = score_tables(report.scores())
    (row,) = table.cells
    assert row.method == ssmoe_embed.load(progress=False)[0].settings.method == "smoe"
    assert (table.types, len(table.metrics)) == (TYPES, 11)
    *clean, _ = readme_table()["ssmoe/tiny, smoe"]
    measured = [*(table.mean(row, kind) for kind in table.types), table.mean(row)]
    assert measured == pytest.approx(clean, abs=1.0)  # other processors round otherwise


@pytest.mark.slow
def test_corrupted_texts_have_the_reports_scores(tmp_path):
    scores = report_scores(CORRUPT, ("ssmoe/tiny", "smoe"))
    assert len(scores) == 11
    assert sum(scores.values()) / 11 == pytest.approx(readme_table()["ssmoe/tiny, smoe"][-1], abs=0.1)
    tasks, options = ["WordNetSimilaritySTS", "ReviewSnippetSentimentClassification"], EvaluationOptions(progress=False)
    report = evaluate(["ssmoe/tiny"], tasks, grid(corruptions=[CORRUPT]), tmp_path, options=options)
    assert report.failures == []
    measured = {score.task: 100 * score.score for score in report.scores()}
    assert measured == pytest.approx({task: scores[task] for task in tasks}, abs=1.0)
