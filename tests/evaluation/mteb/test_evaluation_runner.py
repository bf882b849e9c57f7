"""Evaluating models on mteb's own mock tasks: every method right, nothing measured twice, nothing mixed."""

import json

import mteb
import pytest
import torch
from evaluation_tasks import METHODS, QUIET, all_kinds, average, contents, main_scores
from having import having
from mteb.mocks import MockClassificationTask, MockPairClassificationTask, MockRetrievalTask, MockSTSTask
from tiny import TOP_C

from ssmoe_embed import SpectralRouters
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run, grid
from ssmoe_embed.evaluation.tasks.corruption import Corruption


@pytest.fixture(scope="module")
def model(evaluated_olmoe):
    return evaluated_olmoe


@pytest.fixture(scope="module")
def everything(model, tmp_path_factory):
    """All methods, and one of them on corrupted texts, on a task of each kind."""
    runs = [*grid(METHODS), *grid(["smoe"], corruptions=["replace@0.4"])]
    options = EvaluationOptions(progress=False, batch_size=8, predictions=True)
    return evaluate([model], all_kinds(), runs, tmp_path_factory.mktemp("results"), options=options)


def test_every_method_is_measured_on_every_kind_of_task(everything):
    assert everything.failures == []
    assert everything.done == len(main_scores(everything)) == (len(METHODS) + 1) * len(all_kinds())


@pytest.mark.parametrize(
    "method",
    [pytest.param(one, marks=[] if one in ("router", "ssmoe") else [pytest.mark.slow]) for one in METHODS],
)
def test_a_method_scores_as_when_mteb_evaluates_the_plain_model(everything, model, method):
    having(model.model[0], **model.settings(Run(method)).as_dict())
    plain = mteb.evaluate(
        model.model,
        all_kinds(),
        cache=None,
        encode_kwargs={"batch_size": 8},
        show_progress_bar=False,
        co2_tracker=False,
    )
    model.model[0].settings = model.own
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
        assert json.loads(kept.read_text(encoding="utf-8"))["mteb_model_meta"] == {
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
    again = evaluate(
        [model], [MockSTSTask()], [Run()], tmp_path, options=EvaluationOptions(progress=False, overwrite=True)
    )
    assert (first.done, again.done, again.kept) == (1, 1, 0)


@pytest.mark.slow
def test_the_order_of_methods_changes_no_score(model, tmp_path):
    tasks = [MockClassificationTask(), *[task for task in all_kinds() if task.metadata.type == "Clustering"]]
    forward = evaluate([model], tasks, grid(METHODS), tmp_path / "forward", options=QUIET)
    backward = evaluate([model], tasks, grid(METHODS[::-1]), tmp_path / "backward", options=QUIET)
    assert main_scores(forward) == main_scores(backward)


def test_the_models_settings_are_the_same_afterwards(everything, model):
    assert model.model[0].settings == model.own


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


def test_baselines_are_measured_under_the_same_corruptions(model, tmp_path):
    runs = grid(["smoe"], corruptions=["none", "insert@0.5"])
    report = evaluate([model], [MockRetrievalTask()], runs, tmp_path, baselines=["chance"], options=QUIET)
    assert report.failures == []
    assert {(score.model, score.method, score.corruption) for score in report.scores()} == {
        ("test/olmoe", "smoe", "clean"),
        ("test/olmoe", "smoe", "insert@0.5"),
        ("baseline/chance", "", "clean"),
        ("baseline/chance", "", "insert@0.5"),
    }


def test_clean_training_texts_are_an_experiment_of_their_own(model, tmp_path):
    runs = [Run(corruption=Corruption(rate=0.8)), Run(corruption=Corruption(rate=0.8, train_split=False))]
    report = evaluate([model], [MockClassificationTask()], runs, tmp_path, options=QUIET)
    assert len(report.scores()) == 2
    tokens = {rate.corruption: rate.words for rate in report.folder.rates()}
    assert tokens["replace@0.8,train_split=False"] < tokens["replace@0.8"]


def test_each_task_may_be_measured_with_its_own_instruction(model, tmp_path):
    tasks = [MockSTSTask(), MockPairClassificationTask()]
    report = evaluate(
        [model],
        tasks,
        grid(["smoe"], overrides={"instruction": "task", "calibration": "none"}),
        tmp_path / "task",
        options=QUIET,
    )
    assert report.failures == []
    for task, score in zip(tasks, main_scores(report).values(), strict=True):
        own = task.metadata.prompt or task.abstask_prompt
        alone = evaluate(
            [model],
            [task],
            grid(["smoe"], overrides={"instruction": own, "calibration": "none"}),
            tmp_path / task.metadata.name,
            options=QUIET,
        )
        assert list(main_scores(alone).values()) == [score]


def test_the_paper_preset_is_measured_with_raw_signs(model, tmp_path):
    report = evaluate([model], [MockSTSTask()], grid(["smoe", "paper"]), tmp_path, options=QUIET)
    assert report.failures == []
    assert {score.settings.get("sign") for score in report.scores()} == {None, "raw"}
    raw = SpectralRouters.from_model(model.model[0].model, top_c=TOP_C, sign="raw", progress=False)
    [made] = (tmp_path / "routers").rglob("*.safetensors")
    for layer, weight in SpectralRouters.load(made).weights.items():
        torch.testing.assert_close(weight, raw.weights[layer], rtol=0, atol=1e-6)
