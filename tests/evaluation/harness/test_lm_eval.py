"""The grid through lm-evaluation-harness: scores, resuming, tasks, the command."""

import json
import math
import shutil
from dataclasses import fields

import pytest
import torch
from tiny import TOP_C

from ssmoe_embed import reroute
from ssmoe_embed.evaluation.harness import grid as grids
from ssmoe_embed.evaluation.harness import tasks as offline_tasks
from ssmoe_embed.evaluation.harness.grid import (
    GRID,
    OFFLINE_TASKS,
    PAPER_TASKS,
    GridCell,
    GridOptions,
    check_grid,
    find_tasks,
    load_tasks,
)
from ssmoe_embed.evaluation.harness.results import GridFolder, TaskResult, report
from ssmoe_embed.evaluation.harness.running import run_grid
from ssmoe_embed.evaluation.paper import language_models as comparison
from ssmoe_embed.evaluation.tasks.local_data import LocalData
from ssmoe_embed.language_model import RoutingSettings, expert_overlap, load, load_tokenizer, perplexity
from ssmoe_embed.language_model.loading import policy_of

pytest.importorskip("lm_eval")
SETTINGS = RoutingSettings(alpha=0.6, top_c=TOP_C, scale="router")
CELLS = ("original", "ssmoe", "ssmoe-drop", "hash")


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("text") / "held_out.txt"
    file.write_text("\n".join(texts * 2), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def options(text_file):
    return GridOptions(
        num_fewshot=1,
        limit=6,
        settings=SETTINGS,
        calibration=text_file,
        text=text_file,
        overlap_prompts=3,
        progress=False,
    )


@pytest.fixture(scope="module")
def grid(olmoe, options, tmp_path_factory):
    """Four cells on the offline tasks; never change it."""
    output = tmp_path_factory.mktemp("grid") / "results"
    return run_grid(olmoe, [GridCell.parse(name) for name in CELLS], ["offline"], output, options)


@torch.no_grad()
def by_hand(model, tokenizer, prompt, choices):
    """The likeliest choice after a prompt."""
    scores = []
    for choice in choices:
        before, ids = (tokenizer(part)["input_ids"] for part in (prompt, f"{prompt} {choice}"))
        likely = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        scores.append(sum(float(likely[place - 1, ids[place]]) for place in range(len(before), len(ids))))
    return scores.index(max(scores))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_outside_of_a_repository_nothing_is_said_of_git(olmoe, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    options = GridOptions(num_fewshot=0, limit=2, progress=False, overlap_prompts=0)
    run_grid(olmoe, [GridCell.parse("original")], ["ssmoe_dictionary"], tmp_path / "out", options)
    assert "git" not in capfd.readouterr().err


@pytest.mark.parametrize("routing", ["original", "hash"])
def test_the_score_is_that_of_a_computation_by_hand(routing, olmoe, tmp_path):
    options = GridOptions(num_fewshot=0, limit=8, progress=False, overlap_prompts=0)
    folder = run_grid(olmoe, [GridCell.parse(routing)], ["ssmoe_dictionary"], tmp_path / "out", options)
    model, tokenizer = load(olmoe, routing), load_tokenizer(olmoe)
    test = offline_tasks.dictionary()["test"].select(range(8))
    right = [by_hand(model, tokenizer, f"{one['definition']}:", one["choices"]) == one["gold"] for one in test]
    (result,) = folder.results()
    assert list(folder.correct(routing, "ssmoe_dictionary").values()) == [float(one) for one in right]
    share = sum(right) / 8
    assert result.score == share
    assert result.stderr == pytest.approx(math.sqrt(share * (1 - share) / 7))


def test_every_cell_has_every_task_with_its_memory_and_overlap(grid, olmoe):
    results = {(one.cell, one.task): one for one in grid.results()}
    cells = [GridCell.parse(name).name for name in CELLS]
    assert set(results) == {(cell, task) for cell in cells for task in OFFLINE_TASKS}
    whole = sum(weight.nbytes for weight in load(olmoe).parameters())
    for (cell, _), one in results.items():
        assert one.examples == 6
        assert (one.weight_bytes < whole) == ("drop" in cell)
        assert (one.overlap is None) == (cell == "original")


def test_overlap_is_measured_on_the_tasks_prompts(grid, olmoe):
    model, tokenizer = load(olmoe), load_tokenizer(olmoe)
    loaded = load_tasks(["ssmoe_dictionary"]).manager.load(["ssmoe_dictionary"])["tasks"]["ssmoe_dictionary"]
    assert len(loaded.dataset["test"]) == 400
    found = next(one.overlap for one in grid.results() if (one.cell, one.task) == ("hash", "ssmoe_dictionary"))
    texts = [one["definition"] for one in loaded.dataset["test"]]
    expected = expert_overlap(model, tokenizer, texts, policy_of("hash", model, SETTINGS))
    assert found["share"] == pytest.approx(expected.share, abs=0.1)
    assert found["chance_share"] == expected.chance_share


def test_perplexity_is_measured_under_the_cells_routing(grid, olmoe, text_file):
    found = {one.cell: one.value for one in grid.perplexities()}
    model, tokenizer = load(olmoe), load_tokenizer(olmoe)
    for routing in ("original", "ssmoe"):
        policy = policy_of(routing, model, SETTINGS, progress=False)
        handle = reroute(model, policy) if policy else None
        expected = perplexity(model, tokenizer, text_file.read_text(encoding="utf-8"), progress=False).value
        assert found[routing] == pytest.approx(expected, rel=1e-5)
        if handle:
            handle.remove()
    assert len(set(found.values())) == len(CELLS)


def test_a_text_alone_is_measured_without_tasks(grid, olmoe, options, tmp_path):
    found = run_grid(olmoe, [GridCell.parse("original")], [], tmp_path / "out", options)
    assert found.results() == []
    assert found.perplexities() == [one for one in grid.perplexities() if one.cell == "original"]


def test_a_group_of_tasks_has_one_score_and_the_examples_of_all(olmoe, tmp_path, monkeypatch):
    folder = tmp_path / "tasks"
    shutil.copytree(grids.TASK_FOLDER, folder)
    lines = ["group: both", "task: [ssmoe_dictionary, ssmoe_continuation]"]
    lines += ["aggregate_metric_list:", "  - metric: acc", "    weight_by_size: true"]
    (folder / "both.yaml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(grids, "TASK_FOLDER", folder)
    monkeypatch.setattr(grids, "OFFLINE_TASKS", ("both",))
    grids._manager.cache_clear()
    options = GridOptions(num_fewshot=0, limit=4, progress=False, overlap_prompts=0)
    try:
        found = run_grid(olmoe, [GridCell.parse("original")], ["both"], tmp_path / "out", options)
    finally:
        grids._manager.cache_clear()
    (result,) = found.results()
    correct = found.correct("original", "both")
    assert len(correct) == result.examples == 8
    assert result.score == pytest.approx(sum(correct.values()) / 8)


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_measured_again(grid, olmoe, options, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(grid.path, copy)
    lost = copy / "cells" / "hash" / "ssmoe_dictionary.json"
    before = json.loads(lost.read_text(encoding="utf-8"))
    lost.unlink()
    times = {file: file.stat().st_mtime_ns for file in copy.rglob("*.json")}
    told = []
    run_grid(olmoe, [GridCell.parse(name) for name in CELLS], ["offline"], copy, options, on_cell=told.append)
    assert [cell.name for cell in told] == ["hash"]
    assert json.loads(lost.read_text(encoding="utf-8")) == before
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keep": 0.1}, "keep at least 0.25"),
        ({"num_fewshot": 41}, "num_fewshot=41 is more than the 40 examples that task 'ssmoe_continuation'"),
        ({"calibration": "short.txt"}, "too short"),
        ({"calibration": "nowhere.txt"}, "no text file nowhere.txt"),
        ({"text": "empty.txt"}, "nothing to predict"),
        ({"text": "nowhere.txt"}, "no text file nowhere.txt"),
    ],
)
def test_what_a_later_cell_lacks_is_told_before_the_first_is_measured(changed, message, olmoe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Too little.", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    told = []
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_grid(
            olmoe, GRID, ["offline"], tmp_path / "out", GridOptions(**changed, progress=False), on_cell=told.append
        )
    assert not told
    assert not (tmp_path / "out").exists()


def test_what_no_cell_needs_is_not_asked_for(olmoe, tmp_path):
    check_grid(olmoe, [GridCell.parse("original")], GridOptions(keep=0.1, calibration=tmp_path / "nowhere.txt"))


def test_a_folder_without_results_may_be_claimed_again(tmp_path):
    folder = GridFolder(tmp_path)
    folder.claim({"base": "mistyped"})
    folder.claim({"base": "right"})
    assert folder.settings() == {"base": "right"}
    (tmp_path / "routers_router.safetensors").write_bytes(b"made for that base")
    with pytest.raises(ValueError, match="base 'right' instead of 'other'"):
        folder.claim({"base": "other"})


def test_results_of_other_settings_do_not_mix(grid, olmoe):
    with pytest.raises(ValueError, match=r"limit 6 instead of 7"):
        grid.claim(GridFolder(grid.path).settings() | {"limit": 7})


def test_a_folder_of_something_else_is_left_alone(olmoe, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="not empty"):
        run_grid(olmoe, GRID, ["offline"], tmp_path, GridOptions(progress=False))


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_papers_tasks_are_known_to_the_harness():
    known = grids._manager(include_defaults=True).all_tasks
    assert all(name in known for name in [*PAPER_TASKS.values(), "mmlu"])


@pytest.mark.slow  # the harness looks for its own tasks
def test_a_task_that_needs_the_network_says_so_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"'arc_easy'.*network.*--tasks offline"):
        run_grid(tmp_path / "no model", GRID, ["arc_easy"], tmp_path / "out", GridOptions(progress=False))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # so does this
def test_an_unknown_task_is_named_with_its_neighbours():
    with pytest.raises(ValueError, match=r"'ssmoe_dictionery'.*Did you mean 'ssmoe_dictionary'"):
        load_tasks(["ssmoe_dictionery"])


def test_sets_of_tasks_are_their_tasks_each_once():
    assert find_tasks(["offline", "ssmoe_dictionary"]) == list(OFFLINE_TASKS)
    assert find_tasks(["paper"]) == list(PAPER_TASKS.values())


@pytest.mark.parametrize("make", [offline_tasks.dictionary, offline_tasks.continuation])
def test_offline_tasks_have_one_right_answer_of_four_and_no_example_twice(make):
    parts = make()
    prompts = []
    for part in parts.values():
        for one in part:
            assert len(set(one["choices"])) == 4
            prompts.append(one.get("definition") or one["beginning"])
        golds = [one["gold"] for one in part]
        assert all(golds.count(place) > len(golds) / 10 for place in range(4))
    assert len(set(prompts)) == len(prompts)
    assert make()["test"].to_list() == parts["test"].to_list()


# --- cells ------------------------------------------------------------------------------------------------------------


def test_a_cells_name_names_it():
    for cell in [*GRID, GridCell.parse("ev+router-drop")]:
        assert GridCell.parse(cell.name) == cell


@pytest.mark.parametrize("name", ["ssmo", "ssmoe+drop", "ssmoe+best-drop"])
def test_an_unknown_cell_is_refused(name):
    with pytest.raises(ValueError, match="is not known"):
        GridCell.parse(name)


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command_measures_reports_and_compares(ssmoe, olmoe, tmp_path):
    out = tmp_path / "out"
    arguments = ["lm-eval", olmoe, "--routing", "original", "random", "--tasks", "ssmoe_dictionary"]
    arguments += ["--num-fewshot", "0", "--limit", "3", "--output", out, "--quiet"]
    done = ssmoe(*arguments)
    assert "random" in done.out
    assert "%|" not in done.out + done.err  # --quiet: no progress bars, the harness' own included
    assert (out / "report.md").read_text(encoding="utf-8").count("| random |") == 3
    compared = ssmoe("compare", out, "--with", "paper", "--as", "GPT-OSS-20B", "-o", tmp_path / "c.md")
    assert compared.status == 0, compared.err
    assert "Only the first 3 examples" in (tmp_path / "c.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no language-model scores"):
        comparison.compare_with_paper(GridFolder(out))


def test_examples_are_read_whatever_ends_of_lines_their_texts_hold(tmp_path):
    folder = GridFolder(tmp_path)
    examples = [
        {"task": "t", "doc_id": number, "doc_hash": "h", "score": float(number), "prompt": f"one{end}two"}
        for number, end in enumerate("\u2028\u2029\x85\n\r")
    ]
    blank = {field.name: 0 for field in fields(TaskResult)}
    folder.write(TaskResult(**blank | {"cell": "original", "task": "t"}), examples)
    assert list(folder.correct("original", "t").values()) == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.slow  # the harness takes long to find its own tasks; test_local_data checks what is handed to them
def test_the_harness_own_task_runs_on_local_data_and_the_result_says_so(olmoe, tmp_path):
    file = tmp_path / "data" / "arc_easy" / "test.jsonl"
    file.parent.mkdir(parents=True)
    rows = [
        {
            "id": str(number),
            "question": f"which word is number {number}",
            "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number % 3],
        }
        for number in range(6)
    ]
    for split in ("test", "train", "validation"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        file.with_name(f"{split}.jsonl").write_text(text, encoding="utf-8")
    options = GridOptions(num_fewshot=0, data=LocalData(tmp_path / "data"), progress=False)

    def run():
        return run_grid(olmoe, [GridCell.parse("original")], ["arc_easy"], tmp_path / "out", options)

    [result] = run().results()
    assert result.examples == 6
    assert result.data.startswith("local-")
    assert result.data in report(GridFolder(tmp_path / "out")).markdown()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"arc_easy on local-.*choose another --output"):
        run()
