"""What a grid's results become: flips, tables with standard errors, and the paper's numbers beside them."""

import csv
import math

import pytest

from ssmoe_embed.evaluation.harness import results as report
from ssmoe_embed.evaluation.harness.grid import GRID, PAPER_TASKS, GridOptions
from ssmoe_embed.evaluation.harness.results import GridFolder, TaskResult, TextResult, answer_flips, folder_flips
from ssmoe_embed.evaluation.paper import language_models as comparison
from ssmoe_embed.evaluation.paper.language_models import Quantity, published

RIGHT = {
    ("original", "boolq"): [1, 1, 1, 0],
    ("original", "piqa"): [1, 0, 0, 0],
    ("ssmoe", "boolq"): [1, 0, 0, 1],
    ("ssmoe", "piqa"): [1, 1, 1, 0],
    ("ssmoe+ssmoe-drop", "boolq"): [0, 0, 0, 0],
}
"""Which examples are right; the last cell is not done yet."""
OVERLAP = {"share": 0.5, "chance_share": 0.125, "jaccard": 0.375, "chance_jaccard": 0.0667}


@pytest.fixture
def folder(tmp_path):
    """Results as a run leaves them."""
    found = GridFolder(tmp_path / "results")
    found.claim(GridOptions(num_fewshot=10).record("openai/gpt-oss-20b"))
    for (cell, task), right in RIGHT.items():
        samples = [{"task": task, "doc_id": i, "doc_hash": str(i), "score": float(one)} for i, one in enumerate(right)]
        score = sum(right) / 4
        error = math.sqrt(score * (1 - score) / 3)
        size = 30_000_000_000 if "drop" in cell else 40_000_000_000
        overlap = None if cell == "original" else OVERLAP
        found.write(TaskResult(cell, task, "acc,none", score, error, 4, {}, size, overlap, "0"), samples)
    for cell, value in (("original", 100.0), ("ssmoe+ssmoe-drop", 110.0)):
        found.write_perplexity(TextResult(cell, "mine.txt", "d", value, math.log(value), 0.01, 900, 1024, 512))
    return found


# --- flips ------------------------------------------------------------------------------------------------------------


def test_flips_are_counted_both_ways():
    first = dict(zip("abcdefgh", [1, 1, 1, 1, 0, 0, 0, 0], strict=True))
    second = dict(zip("abcdefgh", [1, 0, 1, 1, 1, 1, 1, 0], strict=True))
    flips = answer_flips(first, second)
    assert (flips.first, flips.second) == (4 / 8, 6 / 8)
    assert (flips.correct_to_wrong, flips.wrong_to_correct, flips.flip_rate) == (1 / 8, 3 / 8, 4 / 8)
    from scipy.stats import binomtest

    assert flips.p_value == pytest.approx(binomtest(1, 4).pvalue)


def test_flips_of_other_examples_are_refused():
    with pytest.raises(ValueError, match="0 are the same"):
        answer_flips({"a": 1}, {"b": 1})


def test_flips_explain_the_difference_of_the_scores(folder):
    flips = folder_flips(folder)
    assert set(flips) == {key for key in RIGHT if key[0] != "original"}
    assert (flips["ssmoe", "boolq"].correct_to_wrong, flips["ssmoe", "boolq"].wrong_to_correct) == (2 / 4, 1 / 4)
    assert (flips["ssmoe", "piqa"].correct_to_wrong, flips["ssmoe", "piqa"].wrong_to_correct) == (0, 2 / 4)


# --- tables -----------------------------------------------------------------------------------------------------------


def rows_of(folder, title):
    """The rows of one table, by their first two cells."""
    (table,) = [table for table in report.tables(folder) if table.title.startswith(title)]
    return {row[:2]: row[2:] for row in table.rows}


def test_scores_stand_with_their_errors_and_memory_and_a_mean_only_where_all_tasks_are_done(folder):
    rows = rows_of(folder, "Scores ± standard error, points of 100, 10-shot")
    assert rows["ssmoe", "40,000.00"] == ("50.0 ± 28.9", "75.0 ± 25.0", "62.5 ± 19.1")
    assert rows["ssmoe+ssmoe-drop", "30,000.00"] == ("0.0 ± 0.0", "–", "–")


def test_flips_overlap_and_perplexity_have_tables_of_their_own(folder):
    assert rows_of(folder, "Answer flips")["ssmoe", "PIQA"] == ("25.0", "75.0", "50.0", "0.0", "50.0", "0.500")
    assert rows_of(folder, "Experts in common")["ssmoe", "BoolQ"] == ("0.5000", "0.1250", "0.3750", "0.0667")
    assert rows_of(folder, "Perplexity")["original", "mine.txt"][0] == "100.00"
    assert report.report(folder).markdown().count("\n## ") == 4


def test_the_csv_has_a_line_for_each_cell_and_task(folder):
    lines = list(csv.DictReader(report.scores_csv(folder).splitlines()))
    assert [(line["cell"], line["task"]) for line in lines] == list(RIGHT)
    assert [float(line["score"]) for line in lines] == [sum(right) / 4 for right in RIGHT.values()]


# --- the paper --------------------------------------------------------------------------------------------------------


def test_the_papers_numbers_are_there():
    found = {(one.table, one.model, one.cell, one.task, one.quantity): one.value for one in published()}
    assert len(found) == len(published())
    assert found[1, "GPT-OSS-20B", "ssmoe", "hellaswag", Quantity.SCORE] == 40.9
    assert found[5, "GPT-OSS-20B", "average-ev", "gsm8k", Quantity.SCORE] == 33.3
    assert found[12, "GPT-OSS-20B", "hash", "arc_challenge", Quantity.SCORE] == 23.3
    assert found[13, "GPT-OSS-20B", "ssmoe+ssmoe-drop", "boolq", Quantity.FLIP_RATE] == 39.2
    assert found[15, "GPT-OSS-20B", "ssmoe", "openbookqa", Quantity.OVERLAP] == 0.1462
    assert found[1, "GPT-OSS-20B", "original+random-drop", None, Quantity.MEMORY] == 30.05


def test_the_papers_ssmoe_of_table_12_is_that_with_fewer_experts_and_its_random_router_its_random_dropping():
    table = {
        (one.table, one.cell, one.task): one.value
        for one in published()
        if one.model == "GPT-OSS-20B" and one.quantity is Quantity.SCORE
    }
    for task in PAPER_TASKS.values():
        assert table[12, "random", task] == table[1, "original+random-drop", task]
        assert table[5, "ssmoe+ssmoe-drop", task] == table[1, "ssmoe+ssmoe-drop", task]


def test_measured_numbers_stand_beside_the_papers(folder):
    lines = {
        (line.paper.table, line.paper.cell, line.paper.task, line.paper.quantity): line.measured
        for line in comparison.compare_with_paper(folder)
    }
    assert lines[1, "ssmoe", "boolq", Quantity.SCORE] == 50
    assert lines[1, "ssmoe", None, Quantity.MEMORY] == 40
    assert lines[13, "ssmoe+ssmoe-drop", "boolq", Quantity.CORRECT_TO_WRONG] == 75
    assert lines[14, "ssmoe+ssmoe-drop", None, Quantity.PERPLEXITY] == 110
    assert lines[15, "ssmoe", "piqa", Quantity.OVERLAP] == 0.5
    assert lines[1, "original", "gsm8k", Quantity.SCORE] is None
    assert {cell for _, cell, _, _ in lines} <= {cell.name for cell in GRID}
    assert "mine.txt" in " ".join(comparison.notes(folder))
    assert not any("num_fewshot" in note for note in comparison.notes(folder))


def test_a_difference_is_ours_less_the_papers(folder):
    line = next(one for one in comparison.compare_with_paper(folder) if one.paper.quantity is Quantity.PERPLEXITY)
    assert line.difference == pytest.approx(line.measured - line.paper.value)
