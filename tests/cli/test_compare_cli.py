"""`ssmoe compare`, as a user types it."""

import re
from dataclasses import replace

import mteb
import pytest
from evaluation_tasks import rated_pairs
from mteb.results import TaskResult

import ssmoe_embed
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run, grid
from ssmoe_embed.evaluation.results.folder import ResultFolder


@pytest.fixture(scope="module")
def measured(built, tmp_path_factory):
    """The results of two methods on one task, with their predictions; never change them."""
    options = EvaluationOptions(predictions=True, progress=False)
    report = evaluate([built], [rated_pairs()], grid(["ssmoe", "smoe"]), tmp_path_factory.mktemp("in"), options=options)
    assert not report.failures
    return report.folder.path


def test_the_command_compares_two_methods_and_writes_the_table(ssmoe, measured, tmp_path, monkeypatch):
    monkeypatch.setattr("ssmoe_embed.evaluation.tasks.finding.find_tasks", lambda names: [rated_pairs()])
    args = ["compare", measured, "--methods", "ssmoe", "smoe", "--tasks", "MockSTSTask", "--resamples", 200]
    ran = ssmoe(*args, "-o", tmp_path / "out.csv")
    assert ran.status == 0, ran.err
    assert "local/model, clean, prompt none" in ran.out
    assert "cosine_spearman" in ran.out
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 2


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
def test_the_command_refuses_what_it_cannot_do(ssmoe, measured, args, message):
    ran = ssmoe("compare", measured, *args)
    assert ran.status == 1
    assert re.search(message, ran.err)


def test_the_command_compares_a_named_model_with_the_paper_and_keeps_an_existing_file(ssmoe, measured, tmp_path):
    out = tmp_path / "out.md"
    named = ["--model", "local/model", "--as", "OLMoE-7B"]
    args = ["compare", measured, "--with", "paper", *named, "-o", out]
    ran = ssmoe(*args)
    assert ran.status == 0, ran.err
    assert "None of the paper's 19 tasks was measured" in out.read_text(encoding="utf-8")
    assert "exists already" in ssmoe(*args).err


def test_the_command_shows_a_result_file_of_mteb_beside_the_papers_score(ssmoe, built, tmp_path):
    model = EvaluatedModel.of(ssmoe_embed.load(built, progress=False))
    meta = replace(model, name="ssmoe/olmoe-7b").meta(Run(method="ssmoe", prompt="none"))
    task = mteb.get_task("EmotionClassification")
    entry = {"main_score": 0.5, "accuracy": 0.5, "hf_subset": "default", "languages": ["eng-Latn"]}
    measured_once = TaskResult.from_task_results(task, {"test": {"default": entry}}, evaluation_time=1.0)
    ResultFolder(tmp_path).cache().save_to_cache(measured_once, meta)
    out = tmp_path / "table.md"
    ran = ssmoe("compare", tmp_path, "--with", "paper", "--methods", "ssmoe", "-o", out)
    assert ran.status == 0, ran.err
    assert "| EmotionClassification | 50.0 (37.4, +12.6) |" in out.read_text(encoding="utf-8")
    assert "| **Classification mean** | **50.0 (37.4, +12.6)** |" in out.read_text(encoding="utf-8")
    assert "tasks measured of 19: ssmoe 1" in out.read_text(encoding="utf-8").lower()
