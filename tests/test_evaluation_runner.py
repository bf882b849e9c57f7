"""Evaluating models on mteb's own mock tasks: right, resumable, and nothing mixed."""

import json
import subprocess
import sys
from pathlib import Path

import mteb
import pytest
from evaluation_tasks import all_kinds, average, failing, unavailable, whole
from mteb.mocks import MockClassificationTask, MockMultilingualSTSTask, MockRetrievalTask, MockSTSTask
from tiny import save_model

import ssmoe_embed
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.evaluation.corruption import Corruption
from ssmoe_embed.evaluation.jobs import StaleResultError
from ssmoe_embed.evaluation.models import EvaluatedModel
from ssmoe_embed.evaluation.report import Options
from ssmoe_embed.evaluation.results import ResultFolder
from ssmoe_embed.evaluation.runner import evaluate
from ssmoe_embed.evaluation.runs import Run, grid

QUIET = Options(progress=False, batch_size=8)
METHODS = ["router", "smoe", "moee", "ev", "ssmoe"]


@pytest.fixture(scope="module")
def model(calibrated_module):
    calibrated_module.configure(calibration="standardize")
    yield EvaluatedModel.of(EmbeddingModel(modules=[calibrated_module], device="cpu"), "test/olmoe")
    calibrated_module.configure(calibration="none")


def contents(folder):
    """Every result file with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.json")}


def main_scores(report):
    return {(score.method, score.corruption, score.task): score.score for score in report.scores()}


@pytest.fixture(scope="module")
def everything(model, tmp_path_factory):
    """All methods, and one of them on corrupted texts, on a task of each kind."""
    runs = [*grid(METHODS), *grid(["smoe"], corruptions=["replace@0.4"])]
    options = Options(progress=False, batch_size=8, predictions=True)
    return evaluate([model], all_kinds(), runs, tmp_path_factory.mktemp("results"), options=options)


def test_every_method_is_measured_on_every_kind_of_task(everything):
    assert everything.failures == []
    assert everything.done == len(main_scores(everything)) == (len(METHODS) + 1) * len(all_kinds())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_scores_as_when_mteb_evaluates_the_plain_model(everything, model, method):
    model.model[0].configure(**model.settings(Run(method)).as_dict())
    plain = mteb.evaluate(
        model.model,
        all_kinds(),
        cache=None,
        encode_kwargs={"batch_size": 8},
        show_progress_bar=False,
        co2_tracker=False,
    )
    model.model[0].configure(**model.own.as_dict())
    measured = main_scores(everything)
    for result in plain.task_results:
        assert measured[method, "clean", result.task_name] == pytest.approx(result.get_score(), abs=1e-6)


def test_corruption_reaches_the_texts_and_its_rate_is_noted(everything):
    measured = main_scores(everything)
    tasks = {task for _, _, task in measured}
    assert any(measured["smoe", "clean", task] != measured["smoe", "replace@0.4", task] for task in tasks)
    rates = {rate.task: rate for rate in everything.folder.rates()}
    assert rates.keys() == {task.metadata.name for task in all_kinds()}
    for rate in rates.values():
        assert rate.nominal == 0.4
        assert 0.1 < rate.tokens / rate.words < 0.6


def test_the_five_methods_read_each_text_twice_in_all(model, tmp_path):
    one = evaluate([model], [MockRetrievalTask()], [Run("smoe")], tmp_path / "one", options=QUIET)
    five = evaluate([model], [MockRetrievalTask()], grid(METHODS), tmp_path / "five", options=QUIET)
    assert five.texts_read == 2 * one.texts_read > 0


def test_only_the_model_as_it_is_on_clean_texts_is_outside_the_experiments(everything):
    assert {(score.method, score.corruption) for score in everything.scores() if score.is_default} == {
        ("ssmoe", "clean")
    }


def test_mteb_reads_the_results_by_its_own_loader(everything, model):
    meta = model.meta(Run("ev"))
    found = everything.folder.cache("clean").load_results([meta], require_model_meta=True, include_remote=False)
    [result] = found.model_results
    measured = main_scores(everything)
    assert {one.task_name: one.get_score() for one in result.task_results} == {
        task: pytest.approx(score)
        for (method, corruption, task), score in measured.items()
        if (method, corruption) == ("ev", "clean")
    }


def test_predictions_are_kept_where_the_score_says(everything):
    for score in everything.scores():
        kept = everything.folder.prediction_file(score)
        assert kept.is_file()
        assert json.loads(kept.read_text())["mteb_model_meta"] == {
            "model_name": "test/olmoe",
            "revision": score.revision,
        }


def test_the_same_evaluation_again_measures_nothing_and_changes_nothing(everything, model):
    before = contents(everything.folder.path)
    again = evaluate([model], all_kinds(), grid(METHODS), everything.folder.path, options=QUIET)
    assert (again.done, again.kept, again.texts_read) == (0, len(METHODS) * len(all_kinds()), 0)
    assert contents(everything.folder.path) == before


def test_an_average_is_made_of_its_parts_which_have_no_column_of_their_own(model, tmp_path):
    parts = evaluate(
        [model], [MockSTSTask(), MockRetrievalTask()], grid(["smoe", "ev"]), tmp_path / "parts", options=QUIET
    )
    report = evaluate([model], [average()], grid(["smoe", "ev"]), tmp_path / "average", options=QUIET)
    assert report.failures == []
    measured = main_scores(parts)
    assert main_scores(report) == {
        (method, "clean", "Average"): pytest.approx(
            (measured[method, "clean", "MockSTSTask"] + measured[method, "clean", "MockRetrievalTask"]) / 2, abs=1e-5
        )
        for method in ("smoe", "ev")
    }
    assert evaluate([model], [average()], grid(["smoe", "ev"]), tmp_path / "average", options=QUIET).done == 0


def test_overwrite_measures_again(model, tmp_path):
    first = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    again = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=Options(progress=False, overwrite=True))
    assert (first.done, again.done, again.kept) == (1, 1, 0)


def test_the_order_of_methods_changes_no_score(model, tmp_path):
    tasks = [MockClassificationTask(), *[task for task in all_kinds() if task.metadata.type == "Clustering"]]
    forward = evaluate([model], tasks, grid(METHODS), tmp_path / "forward", options=QUIET)
    backward = evaluate([model], tasks, grid(METHODS[::-1]), tmp_path / "backward", options=QUIET)
    assert main_scores(forward) == main_scores(backward)


def test_the_models_settings_are_the_same_afterwards(everything, model):
    assert model.model[0].settings == model.own


# --- interruptions and failures ---------------------------------------------------------------------------------------

KILLED = """
import sys
sys.path.insert(0, sys.argv[3])
import ssmoe_embed
from evaluation_tasks import all_kinds, killing
from ssmoe_embed.evaluation.report import Options
from ssmoe_embed.evaluation.runner import evaluate
from ssmoe_embed.evaluation.runs import grid
options = Options(progress=False, predictions=True)
evaluate([sys.argv[1]], [all_kinds()[5], killing()], grid(["router", "smoe", "moee"]), sys.argv[2], options=options)
"""


def test_a_killed_evaluation_goes_on_where_it_stopped(built, tmp_path, environment):
    command = [sys.executable, "-c", KILLED, built, tmp_path, Path(__file__).parent]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -9
    before = {path: data for path, data in contents(tmp_path).items() if "results" in path.parts}
    folder = ResultFolder(tmp_path)
    assert sorted((score.task, score.method) for score in folder.scores()) == [
        ("MockSTSTask", "moee"),
        ("MockSTSTask", "router"),
        ("MockSTSTask", "smoe"),
        ("Victim", "router"),
    ]
    runs, options = grid(["router", "smoe", "moee"]), Options(progress=False, predictions=True)
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


def test_a_model_that_cannot_be_loaded_does_not_end_the_rest(model, tmp_path):
    report = evaluate([str(tmp_path / "nothing"), model], [MockSTSTask()], [Run()], tmp_path / "out", options=QUIET)
    assert report.done == 1
    [failure] = report.failures
    assert "There is no model" in str(failure)


def test_a_partly_measured_task_is_completed_and_meanwhile_has_no_score(model, tmp_path):
    task = MockMultilingualSTSTask()
    report = evaluate([model], [task], [Run()], tmp_path, options=QUIET)
    [score] = report.scores()
    whole_result = json.loads(score.path.read_text())
    split, subsets = next(iter(whole_result["scores"].items()))
    assert len(subsets) > 1
    score.path.write_text(json.dumps(whole_result | {"scores": {split: subsets[:1]}}))
    assert report.scores() == []
    assert report.folder.incomplete() == [score.path]
    assert evaluate([model], [MockMultilingualSTSTask()], [Run()], tmp_path, options=QUIET).done == 1
    [completed] = report.scores()
    assert (completed.path, completed.score) == (score.path, score.score)


# --- results of something else ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["mteb_version", "dataset_revision"])
def test_results_of_another_version_are_refused_and_kept(model, tmp_path, field):
    report = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    [path] = [score.path for score in report.scores()]
    result = json.loads(path.read_text()) | {field: "1.99.0"}
    for subsets in result["scores"].values():
        subsets[0].pop("mteb_version", None)
    path.write_text(json.dumps(result))
    before = contents(tmp_path)
    with pytest.raises(StaleResultError, match=r"1\.99\.0, now .*--overwrite"):
        evaluate([model], [MockSTSTask()], grid(METHODS), tmp_path, options=QUIET)
    assert contents(tmp_path) == before
    assert (
        evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=Options(progress=False, overwrite=True)).done == 1
    )


def test_one_folder_never_holds_two_versions_of_mteb_nor_of_a_tasks_data(model, tmp_path):
    report = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    [path] = [score.path for score in report.scores()]
    original = json.loads(path.read_text())
    path.write_text(json.dumps(original | {"mteb_version": "1.99.0"}))
    with pytest.raises(StaleResultError, match=r"MockSTSTask\.json \(mteb 1\.99\.0, now"):  # of another task and model,
        evaluate(["no/such-model"], [MockRetrievalTask()], [Run()], tmp_path, options=QUIET)  # before one is looked for
    path.write_text(json.dumps(original | {"dataset_revision": "old"}))
    with pytest.raises(StaleResultError, match=r"data revision old, now"):
        evaluate(["no/such-model"], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    assert evaluate([model], [MockRetrievalTask()], [Run()], tmp_path, options=QUIET).done == 1


def test_a_file_in_the_place_of_the_result_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(NotADirectoryError, match="taken is a file; name a folder"):
        evaluate(["no/such-model"], [MockSTSTask()], [Run()], tmp_path / "taken", options=QUIET)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_broken_result_file_is_named(model, tmp_path):
    report = evaluate([model], [MockSTSTask()], [Run()], tmp_path, options=QUIET)
    [score] = report.scores()
    score.path.write_text('{"task_name": "Mock')
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


# --- other layers, batches, peers -------------------------------------------------------------------------------------


def test_an_earlier_layer_is_loaded_for_its_run_and_kept_apart(built, tmp_path):
    runs = [Run("smoe"), Run("smoe", overrides={"hidden_layer": -2, "calibration": "none"})]
    report = evaluate([built], [MockRetrievalTask()], runs, tmp_path, options=QUIET)
    assert report.failures == []
    assert [score.settings for score in report.scores()] == [{"calibration": "none", "hidden_layer": -2}, {}]
    assert len({score.revision for score in report.scores()}) == 1


def test_what_depends_on_the_batch_is_kept_by_batch_size(model):
    run = Run("moee", overrides={"calibration": "batch"})
    assert model.meta(run, batch_size=8).experiment_name != model.meta(run, batch_size=16).experiment_name
    plain = Run("moee")
    assert model.meta(plain, batch_size=8).experiment_name == model.meta(plain, batch_size=16).experiment_name


def test_peers_are_measured_under_the_same_corruptions(model, tmp_path):
    runs = grid(["smoe"], corruptions=["none", "insert@0.5"])
    report = evaluate([model], [MockRetrievalTask()], runs, tmp_path, peers=["chance"], options=QUIET)
    assert report.failures == []
    assert {(score.model, score.method, score.corruption) for score in report.scores()} == {
        ("test/olmoe", "smoe", "clean"),
        ("test/olmoe", "smoe", "insert@0.5"),
        ("peer/chance", "", "clean"),
        ("peer/chance", "", "insert@0.5"),
    }


def test_clean_training_texts_are_an_experiment_of_their_own(model, tmp_path):
    runs = [Run(corruption=Corruption(rate=0.8)), Run(corruption=Corruption(rate=0.8, train_split=False))]
    report = evaluate([model], [MockClassificationTask()], runs, tmp_path, options=QUIET)
    assert len(report.scores()) == 2
    tokens = {rate.corruption: rate.words for rate in report.folder.rates()}
    assert tokens["replace@0.8,train_split=False"] < tokens["replace@0.8"]
