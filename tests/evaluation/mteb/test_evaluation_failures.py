"""Evaluations that are killed or fail, and folders with results of something else: nothing is lost, mixed or overwritten."""

import json
import multiprocessing
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from evaluation_tasks import METHODS, QUIET, contents, failing, killing, main_scores, renamed, unavailable, whole
from mteb.mocks import MockMultilingualSTSTask, MockRetrievalTask, MockSTSTask
from tiny import save_model

import ssmoe_embed
from ssmoe_embed.evaluation.mteb.jobs import StaleResultError
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run, grid
from ssmoe_embed.evaluation.results.folder import ResultFolder, notes
from ssmoe_embed.evaluation.tasks.corruption import Tally


@pytest.fixture(scope="module")
def model(evaluated_olmoe):
    return evaluated_olmoe


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_stopped(built, tmp_path):
    runs, options = grid(["router", "smoe", "moee"]), EvaluationOptions(progress=False, predictions=True)
    process = multiprocessing.get_context("fork").Process(
        target=evaluate, args=([built], [MockSTSTask(), killing()], runs, tmp_path), kwargs={"options": options}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = {path: data for path, data in contents(tmp_path).items() if "results" in path.parts}
    folder = ResultFolder(tmp_path)
    assert sorted((score.task, score.method) for score in folder.scores()) == [
        ("MockSTSTask", "moee"),
        ("MockSTSTask", "router"),
        ("MockSTSTask", "smoe"),
        ("Victim", "router"),
    ]
    resumed = evaluate([built], [MockSTSTask(), whole()], runs, tmp_path, options=options)
    assert (resumed.failures, resumed.kept, resumed.done) == ([], 4, 2)
    after = contents(tmp_path)
    assert all(after[path] == data for path, data in before.items() if path.name != "model_meta.json")
    fresh = evaluate([built], [MockSTSTask(), whole()], runs, tmp_path / "fresh", options=options)
    assert main_scores(resumed) == main_scores(fresh)
    assert not list(tmp_path.rglob(".*")), "nothing half-written is left"


def test_a_task_that_fails_does_not_end_the_rest(model, tmp_path):
    report = evaluate(
        [model], [failing(), unavailable(), MockSTSTask()], grid(["smoe", "ssmoe"]), tmp_path, options=QUIET
    )
    assert report.done == 2
    assert {score.task for score in report.scores()} == {"MockSTSTask"}
    found = [str(failure) for failure in report.failures]
    assert len(found) == 3
    assert sum("Failing" in one and "the metric is broken" in one for one in found) == 2
    assert (
        sum(
            one.startswith("Unavailable, test/olmoe (2 runs)")
            and "cannot be fetched" in one
            and "hub does not answer" in one
            for one in found
        )
        == 1
    )


def test_overwriting_loses_nothing_when_the_task_fails_this_time(evaluated_olmoe, tmp_path):
    measured = evaluate([evaluated_olmoe], [renamed(MockSTSTask(), "Failing")], [Run()], tmp_path, options=QUIET)
    before, scores = contents(tmp_path), measured.scores()
    overwriting = EvaluationOptions(progress=False, overwrite=True)
    again = evaluate([evaluated_olmoe], [failing()], [Run()], tmp_path, options=overwriting)
    assert (again.done, len(again.failures)) == (0, 1)
    assert (again.scores(), contents(tmp_path)) == (scores, before)
    assert len(scores) == 1


def test_a_model_that_cannot_be_loaded_does_not_end_the_rest(model, tmp_path):
    report = evaluate([str(tmp_path / "nothing"), model], [MockSTSTask()], [Run()], tmp_path / "out", options=QUIET)
    assert report.done == 1
    [failure] = report.failures
    assert "does not exist" in str(failure)


def test_a_partly_measured_task_is_completed_and_meanwhile_has_no_score(model, tmp_path):
    task = MockMultilingualSTSTask()
    report = evaluate([model], [task], [Run()], tmp_path, options=QUIET)
    [score] = report.scores()
    whole_result = json.loads(score.path.read_text(encoding="utf-8"))
    split, subsets = next(iter(whole_result["scores"].items()))
    assert len(subsets) > 1
    score.path.write_text(json.dumps(whole_result | {"scores": {split: subsets[:1]}}), encoding="utf-8")
    assert report.scores() == []
    assert report.folder.incomplete() == [score.path]
    assert evaluate([model], [MockMultilingualSTSTask()], [Run()], tmp_path, options=QUIET).done == 1
    [completed] = report.scores()
    assert (completed.path, completed.score) == (score.path, score.score)


def test_evaluations_at_the_same_time_undo_no_note_of_each_other(tmp_path):
    folder, tasks = ResultFolder(tmp_path), [renamed(MockSTSTask(), f"Task{i}") for i in range(40)]

    def noting(task):
        folder.record([task])
        folder.record_rate("replace@0.1", task.metadata.name, Tally(0.1, words=10, tokens=1))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(noting, tasks))
    names = {task.metadata.name for task in tasks}
    assert notes(tmp_path / "tasks").keys() == notes(tmp_path / "replace@0.1" / "rates").keys() == names


@pytest.mark.parametrize("field", ["mteb_version", "dataset_revision"])
def test_results_of_another_version_are_refused_and_kept(model, tmp_path, field):
    report = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    [path] = [score.path for score in report.scores()]
    result = json.loads(path.read_text(encoding="utf-8")) | {field: "1.99.0"}
    for subsets in result["scores"].values():
        subsets[0].pop("mteb_version", None)
    path.write_text(json.dumps(result), encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(StaleResultError, match=r"1\.99\.0, now .*--overwrite"):
        evaluate([model], [MockSTSTask()], grid(METHODS), tmp_path, options=QUIET)
    assert contents(tmp_path) == before
    assert (
        evaluate(
            [model], [MockSTSTask()], [Run()], tmp_path, options=EvaluationOptions(progress=False, overwrite=True)
        ).done
        == 1
    )


def test_one_folder_never_holds_two_versions_of_mteb_nor_of_a_tasks_data(model, tmp_path):
    report = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    [path] = [score.path for score in report.scores()]
    original = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(original | {"mteb_version": "1.99.0"}), encoding="utf-8")
    with pytest.raises(StaleResultError, match=r"MockSTSTask\.json \(mteb 1\.99\.0, now"):  # of another task and model,
        evaluate(["no/such-model"], [MockRetrievalTask()], [Run()], tmp_path, options=QUIET)  # before one is looked for
    path.write_text(json.dumps(original | {"dataset_revision": "old"}), encoding="utf-8")
    with pytest.raises(StaleResultError, match=r"data revision old, now"):
        evaluate(["no/such-model"], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    assert evaluate([model], [MockRetrievalTask()], [Run()], tmp_path, options=QUIET).done == 1


def test_a_file_in_the_place_of_the_result_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match="taken is a file; name a folder"):
        evaluate(["no/such-model"], [MockSTSTask()], [Run()], tmp_path / "taken", options=QUIET)
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


def test_a_broken_result_file_is_named(model, tmp_path):
    report = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    [score] = report.scores()
    score.path.write_text('{"task_name": "Mock', encoding="utf-8")
    for read in (report.scores, lambda: evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)):
        with pytest.raises(ValueError, match=r"MockSTSTask\.json is broken.*delete it"):
            read()


def test_another_model_of_the_same_name_has_results_of_its_own(model, tmp_path):
    folder = save_model(tmp_path / "other", "olmoe", seed=1)
    other = ssmoe_embed.load(folder, method="smoe", calibration="none", progress=False)
    named = EvaluatedModel.of(other, "test/olmoe")
    assert named.name == model.name
    assert named.revision != model.revision
    report = evaluate([model, named], [MockSTSTask()], [Run()], tmp_path / "out", options=QUIET)
    assert len({(score.model, score.revision) for score in report.scores()}) == 2


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run("routr"), "Did you mean 'router'"),
        (Run(prompt="promptol"), "Did you mean 'prompteol'"),
        (Run(overrides={"alfa": 1}), "Did you mean 'alpha'"),
    ],
)
def test_an_unknown_setting_is_refused_before_anything_is_loaded(tmp_path, run, message):
    with pytest.raises(ValueError, match=message):
        evaluate(["no/such-model"], [MockSTSTask()], [run], tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_that_would_not_be_part_of_a_results_name_are_refused(built, tmp_path):
    for setting in ({"alpha": 0.1}, {"top_c": 3}):
        with pytest.raises(ValueError, match="settings belong to runs"):
            evaluate([built], [MockSTSTask()], [Run()], tmp_path, **setting)
