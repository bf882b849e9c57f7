"""`ssmoe evaluate`, as a user types it."""

import csv
import json
import logging
import os
import shutil

import pytest
from evaluation_tasks import failing
from mteb.mocks import MockMultilingualSTSTask, MockRetrievalTask, MockSTSTask

import ssmoe_embed.evaluation.tasks.finding as task_names
from ssmoe_embed.cli.app import expand_lists

FLAGS = ["--tasks", "--methods", "-m"]


@pytest.fixture
def mock_tasks(monkeypatch):
    """Lets the command find mteb's mock tasks, which mteb itself does not list, by name."""
    mocks = (MockSTSTask, MockRetrievalTask, MockMultilingualSTSTask)
    known, find = {mock.__name__: mock for mock in mocks} | {"Failing": failing}, task_names._named
    monkeypatch.setattr(task_names, "_named", lambda name: [known[name]()] if name in known else find(name))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("MODEL --tasks a b --methods x", "MODEL --tasks a --tasks b --methods x"),
        ("--tasks=a b -o out MODEL", "--tasks a --tasks b -o out MODEL"),
        ("--tasks a -- MODEL b", "--tasks a -- MODEL b"),
        ("-m -1 -2.5 -.5 --quiet", "-m -1 -m -2.5 -m -.5 --quiet"),
        ("--tasks --methods x", "--tasks --methods x"),
        ("--batch-size 3 M", "--batch-size 3 M"),
        ("--tasks a --tasks b c", "--tasks a --tasks b --tasks c"),
        ("--tasks a --tasks", "--tasks a --tasks"),
    ],
)
def test_a_flag_is_repeated_before_each_of_its_values(typed, meant):
    assert expand_lists(typed.split(), FLAGS) == meant.split()


def test_a_value_with_blanks_and_commas_stays_one_value():
    assert expand_lists(["--tasks", "MTEB(eng, v1)", "b"], FLAGS) == ["--tasks", "MTEB(eng, v1)", "--tasks", "b"]


def test_methods_and_corruptions_make_tables_files_and_pictures(ssmoe, built, mock_tasks, tmp_path):
    arguments = (
        "--tasks",
        "MockSTSTask",
        "MockRetrievalTask",
        "--methods",
        "smoe",
        "ev",
        "--corrupt",
        "none",
        "insert@0.5",
    )
    command = ("evaluate", built, *arguments, "--baselines", "chance", "-o", tmp_path, "--quiet")
    status, out, err = ssmoe(*command)
    assert status == 0
    assert "clean, points of 100" in out
    assert "insert@0.5, points of 100" in out
    assert "12 measured, 0 kept" in err
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["corruption"], row["task"]) for row in rows} == {
        (method, corruption, task)
        for method in ("smoe", "ev", "")
        for corruption in ("clean", "insert@0.5")
        for task in ("MockSTSTask", "MockRetrievalTask")
    }
    assert {path.name for path in tmp_path.glob("*.*")} >= {"summary.md", "summary.csv", "heatmap.png", "slopes.png"}
    status, _, err = ssmoe(*command)
    assert (status, "0 measured, 12 kept" in err) == (0, True)


def test_what_is_measured_already_is_answered_without_mteb_or_a_model(ssmoe, built, mock_tasks, tmp_path, monkeypatch):
    command = ("evaluate", built, "--tasks", "MockSTSTask", "-o", tmp_path / "out", "--quiet")
    _, first, _ = ssmoe(*command)

    def refuse(*_args, **_kwargs):
        raise ValueError("evaluated again")

    monkeypatch.setattr("ssmoe_embed.evaluation.mteb.runner.evaluate", refuse)
    status, again, err = ssmoe(*command)
    assert (status, again) == (0, first)
    assert "0 measured, 1 kept" in err
    for changed in (("--batch-size", 4), ("--methods", "smoe"), ("--overwrite",)):
        assert "evaluated again" in ssmoe(*command, *changed).err


@pytest.mark.usefixtures("mock_tasks")
@pytest.mark.parametrize("changed", ["model", "result", "result gone", "summary gone"])
def test_whatever_changed_since_a_folder_was_finished_is_looked_at(ssmoe, built, tmp_path, monkeypatch, changed):
    model = shutil.copytree(built, tmp_path / "model")
    command = ("evaluate", model, "--tasks", "MockSTSTask", "-o", tmp_path / "out", "--quiet")
    ssmoe(*command)
    [result] = (tmp_path / "out").rglob("results/**/MockSTSTask.json")
    if changed == "model":
        os.utime(model / "ssmoe.safetensors", ns=(1, 1))
    elif changed == "result":
        os.utime(result, ns=(1, 1))
    else:
        (result if changed == "result gone" else tmp_path / "out" / "summary.md").unlink()
    status, _, err = ssmoe(*command)
    assert status == 0
    assert ("1 measured, 0 kept" if changed == "result gone" else "0 measured, 1 kept") in err
    assert (tmp_path / "out" / "summary.md").is_file()
    calls = []
    monkeypatch.setattr("ssmoe_embed.evaluation.mteb.runner.evaluate", lambda *args, **kwargs: calls.append(args))
    assert ssmoe(*command).status == 0
    assert not calls  # it is finished again


def test_settings_are_part_of_a_runs_name(ssmoe, built, mock_tasks, tmp_path):
    options = ("--settings", "alpha=0.25", "calibration=none", "--prompts", "prompteol", "--quiet", "-o", tmp_path)
    status, out, _ = ssmoe("evaluate", built, "--tasks", "MockSTSTask", *options)
    assert status == 0
    assert "prompt prompteol, alpha=0.25, calibration=none" in out
    [folder] = [path.parent for path in tmp_path.rglob("results/**/MockSTSTask.json")]
    assert folder.name == "alpha_0.25__calibration_none__method_ssmoe__prompt_prompteol"


def test_a_failing_task_ends_with_status_1_after_the_others(ssmoe, built, mock_tasks, tmp_path):
    status, out, err = ssmoe("evaluate", built, "--tasks", "Failing", "MockSTSTask", "-o", tmp_path, "--quiet")
    assert status == 1
    assert "1 measured" in err
    assert "Failed: Failing, local/model: RuntimeError: the metric is broken" in err
    assert "Traceback" not in err
    assert "STS (1)" in out
    assert list(tmp_path.rglob("results/**/MockSTSTask.json"))


def test_what_failed_without_ending_the_command_has_its_traceback_on_request(
    ssmoe, built, mock_tasks, tmp_path, monkeypatch
):
    monkeypatch.setenv("SSMOE_DEBUG", "1")
    package, root = logging.getLogger("ssmoe_embed"), logging.getLogger()
    monkeypatch.setattr(package, "level", package.level)
    monkeypatch.setattr(root, "handlers", [])
    _, _, err = ssmoe("evaluate", built, "--tasks", "Failing", "-o", tmp_path, "--quiet")
    assert "Traceback" in err
    assert 'raise RuntimeError("the metric is broken")' in err


def test_a_result_that_lacks_a_part_is_named_as_it_has_no_place_in_the_tables(ssmoe, built, mock_tasks, tmp_path):
    command = ("evaluate", built, "--tasks", "MockMultilingualSTSTask", "-o", tmp_path, "--quiet")
    assert "Not in the tables" not in ssmoe(*command)[2]
    [path] = tmp_path.rglob("results/**/MockMultilingualSTSTask.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps(result | {"scores": {split: found[:1] for split, found in result["scores"].items()}}),
        encoding="utf-8",
    )
    status, _, err = ssmoe("evaluate", built, "--tasks", "MockSTSTask", "-o", tmp_path, "--quiet")
    assert status == 0
    assert "Not in the tables: 1 results" in err
    assert str(path) in err
    assert "Not in the tables" not in ssmoe(*command)[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "STS122"), "or 'STS12'"),
        (("--methods", "routr"), "Did you mean 'router'"),
        (("--corrupt", "replce@0.1"), "is not known"),
        (("--settings", "alpha"), "name=value"),
        (("--baselines", "chanse", "--tasks", "STS12"), "baseline='chanse' is not known"),
        (("--dtype", "float17"), "choose one of 'float32', 'bfloat16', 'float16'"),
    ],
)
def test_a_bad_input_is_one_message_and_measures_nothing(ssmoe, built, tmp_path, arguments, message):
    status, _, err = ssmoe("evaluate", built, *arguments, "-o", tmp_path, "--quiet")
    assert status == 1
    assert message in " ".join(err.split())
    assert not list(tmp_path.rglob("results"))


def test_nothing_to_evaluate_is_said(ssmoe):
    status, _, err = ssmoe("evaluate")
    assert status == 1
    assert "name a MODEL" in err


def test_a_real_task_runs_on_local_data_and_says_so(ssmoe, built, tmp_path):
    words = ("cat", "dog", "tree", "house", "river", "stone")
    rows = [
        {"sentence1": f"a {one}", "sentence2": f"the {two}", "score": float(4 * (one == two))}
        for one in words
        for two in words[:3]
    ]
    data = tmp_path / "data"
    data.mkdir()
    file = data / "BIOSSES.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    methods = ("--methods", "smoe", "router", "--predictions")
    command = (
        "evaluate",
        built,
        "--tasks",
        "BIOSSES",
        "--dataset-dir",
        data,
        *methods,
        "-o",
        tmp_path / "out",
        "--quiet",
    )
    status, out, _ = ssmoe(*command)
    assert status == 0, out
    result, _ = (tmp_path / "out" / "clean" / "results").rglob("BIOSSES.json")
    revision = json.loads(result.read_text(encoding="utf-8"))["dataset_revision"]
    assert revision.startswith("local-")
    assert revision in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    status, _, err = ssmoe(*command)
    assert (status, "0 measured, 2 kept" in err) == (0, True)
    comparing = ("compare", tmp_path / "out", "--methods", "smoe", "router", "--dataset-dir", data)
    status, out, _ = ssmoe(*comparing)
    assert (status, "BIOSSES" in out) == (0, True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:9]), encoding="utf-8")
    status, _, err = ssmoe(*command)
    assert status == 1
    assert "data revision" in err
    status, _, err = ssmoe(*comparing)
    assert (status, "was measured on other data" in err) == (1, True)
