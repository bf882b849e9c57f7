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


def rows(text, heading):
    """The lines of the first table under a heading, as lists of cells without bold or code."""
    part = re.split(rf"(?m)^#+ {re.escape(heading)}$", text)[1]
    lines = re.search(r"(?m)(^\|.*\n)+", part).group().splitlines()
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


def test_the_readmes_table_is_the_reports():
    clean, corrupt = report_means("clean"), report_means(CORRUPT)
    table = readme_table()
    assert len(table) == 11
    for name, numbers in table.items():
        reported = NAMES.get(name, name)
        assert [f"{number:.1f}" for number in numbers] == [*clean[reported], corrupt[reported][-1]], name


@pytest.mark.slow
@pytest.mark.parametrize("corruption", ["none", CORRUPT])
def test_the_default_method_has_the_readmes_scores_on_all_offline_tasks(corruption, tmp_path):
    runs, options = grid(corruptions=[corruption]), EvaluationOptions(progress=False)
    report = evaluate(["ssmoe/tiny"], ["offline"], runs, tmp_path, options=options)
    assert report.failures == []
    (table,) = score_tables(report.scores())
    (row,) = table.cells
    assert row.method == ssmoe_embed.load(progress=False)[0].settings.method == "smoe"
    assert (table.types, len(table.metrics)) == (TYPES, 11)
    *clean, corrupted = readme_table()["ssmoe/tiny, smoe"]
    measured = [*(table.mean(row, kind) for kind in table.types), table.mean(row)]
    expected = clean if corruption == "none" else [corrupted]
    assert measured[-len(expected) :] == pytest.approx(expected, abs=1.0)  # other processors round otherwise
