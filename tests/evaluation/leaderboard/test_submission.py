"""A leaderboard submission: what it holds, that mteb reads it, and what is refused."""

import json
from dataclasses import replace

import mteb
import pytest
from mteb.mocks.mock_tasks import MockClassificationTask, MockMultilingualSTSTask, MockSTSTask
from mteb.mocks.mock_tasks.reranking import MockAggregatedTask
from mteb.models import ModelMeta

import ssmoe_embed
from ssmoe_embed.evaluation.leaderboard import CODE, MOCK_RUN, prepare_submission
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel, MethodEncoder, load_encoder
from ssmoe_embed.evaluation.mteb.passes import SharedPass
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder
from ssmoe_embed.evaluation.tasks.corruption import Corruption

NAME, COMMIT = "ssmoe/test-moe", "0123456789abcdef0123456789abcdef01234567"
TASKS = [MockSTSTask, MockClassificationTask]


def measure(folder, model, tasks, run=None):
    """What `ssmoe evaluate` leaves behind."""
    run = run or Run()
    settings = model.settings(run)
    encoder = MethodEncoder(SharedPass(model.model, [settings]), model.model, settings, model.meta(run), run.corruption)
    results = ResultFolder(folder)
    results.record(task() for task in tasks)
    for task in tasks:
        mteb.evaluate(
            encoder, task(), cache=results.cache(run.corruption_name), show_progress_bar=False, co2_tracker=False
        )
    return results


@pytest.fixture(scope="module")
def model(built):
    """A tiny model as if it lay on the hub."""
    loaded = EvaluatedModel.of(ssmoe_embed.load(built, progress=False))
    return replace(loaded, name=NAME, revision=COMMIT)


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """Complete default results and one more task that the benchmark does not have; never change it."""
    return measure(tmp_path_factory.mktemp("measured"), model, [*TASKS, MockMultilingualSTSTask])


def tasks(*kinds):
    return [kind() for kind in kinds or TASKS]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_the_layout_of_the_results_repository_and_only_the_benchmarks_tasks(measured, tmp_path):
    submission = prepare_submission(measured, tmp_path / "out", tasks())
    place = f"results/ssmoe__test-moe/{COMMIT}"
    names = ["MockSTSTask.json", "MockClassificationTask.json", "model_meta.json", "run_settings.jsonl"]
    assert files(tmp_path / "out") == {f"{place}/{name}" for name in names} | {CODE}
    original = measured.path / "clean" / place / "MockSTSTask.json"
    assert (tmp_path / "out" / place / "MockSTSTask.json").read_bytes() == original.read_bytes()
    lines = (tmp_path / "out" / place / "run_settings.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"MockSTSTask", "MockClassificationTask"}
    assert (submission.model, submission.revision, submission.mock_run) == (NAME, COMMIT, False)
    assert submission.tasks == ("MockClassificationTask", "MockSTSTask")
    assert submission.version == mteb.__version__


def test_mteb_loads_the_folder_and_finds_the_same_scores(measured, tmp_path):
    prepare_submission(measured, tmp_path / "out", tasks())
    loaded = mteb.ResultCache(tmp_path / "out").load_results(tasks=tasks())
    (result,) = loaded.model_results
    assert (result.model_name, result.model_revision, result.experiment_name) == (NAME, COMMIT, None)
    found = {one.task_name: one.get_score() for one in result.task_results}
    ours = {score.task: score.score for score in measured.scores()}
    assert found == pytest.approx({name: ours[name] for name in ("MockSTSTask", "MockClassificationTask")})


def test_the_code_for_the_pull_request_makes_the_models_record(measured, model, tmp_path, built):
    submission = prepare_submission(measured, tmp_path / "out", tasks())
    spaces = {}
    exec(compile((tmp_path / "out" / CODE).read_text(encoding="utf-8"), CODE, "exec"), spaces)
    record, expected = spaces["ssmoe_test_moe"], model.meta(Run())
    assert isinstance(record, ModelMeta)
    assert record.experiment_kwargs is None
    told, wanted = record.to_dict(), expected.to_dict()
    assert {key for key in wanted if key != "loader" and told[key] != wanted[key]} == set()
    assert set(submission.unknown) == {"release_date", "languages", "citation"}
    for name in submission.unknown:
        assert getattr(record, name) is None
    encoder = record.loader(str(built), device="cpu", **record.loader_kwargs)
    assert encoder.mteb_model_meta.loader_kwargs == expected.loader_kwargs


@pytest.mark.slow
def test_the_mock_run_is_mtebs_report_of_the_same_model(measured, built, tmp_path):
    encoder = load_encoder(str(built))
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update={"name": NAME, "revision": COMMIT})
    submission = prepare_submission(measured, tmp_path / "out", tasks(), load=lambda name, revision: encoder)
    report = (tmp_path / "out" / MOCK_RUN).read_text(encoding="utf-8")
    assert submission.mock_run
    assert report.startswith(f"# MTEB Mock-Run Results for `{NAME}`")
    assert "| MockSTSTask | text | ✓ | - |" in report
    assert "✗" not in report


def test_the_mock_run_of_another_model_is_refused_and_nothing_is_written(measured, built, tmp_path):
    other = load_encoder(str(built))
    with pytest.raises(ValueError, match=rf"mock run is of local/model at .*, the results are of {NAME} at {COMMIT}"):
        prepare_submission(measured, tmp_path / "out", tasks(), load=lambda name, revision: other)
    other.mteb_model_meta = other.mteb_model_meta.model_copy(update={"name": NAME, "revision": "a" * 40})
    with pytest.raises(ValueError, match=rf"mock run is of {NAME} at a{{40}}, the results"):
        prepare_submission(measured, tmp_path / "out", tasks(), load=lambda name, revision: other)
    assert list(tmp_path.iterdir()) == []


def test_results_of_several_versions_of_mteb_are_refused(model, tmp_path):
    results = measure(tmp_path / "in", model, TASKS)
    (path,) = (tmp_path / "in").rglob("results/**/MockSTSTask.json")
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"mteb_version": "2.0.0"}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"several versions of mteb \(2\.0\.0: 1, such as MockSTSTask; .*--overwrite"):
        prepare_submission(results, tmp_path / "out", tasks())
    assert not (tmp_path / "out").exists()


def test_an_incomplete_benchmark_is_refused_with_what_is_missing(model, tmp_path):
    results = measure(tmp_path / "in", model, [MockSTSTask])
    with pytest.raises(ValueError, match=r"not complete: 1 of 2 tasks .* MockClassificationTask\. Measure them"):
        prepare_submission(results, tmp_path / "out", tasks())
    assert not (tmp_path / "out").exists()


def test_a_task_that_lacks_a_subset_is_refused(model, tmp_path):
    results = measure(tmp_path / "in", model, [MockMultilingualSTSTask])
    (path,) = (tmp_path / "in").rglob("results/**/MockMultilingualSTSTask.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    (dropped,) = content["scores"]["test"][1:]
    content["scores"]["test"] = content["scores"]["test"][:1]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"MockMultilingualSTSTask \(test: \['{dropped['hf_subset']}'\]\)"):
        prepare_submission(results, tmp_path / "out", tasks(MockMultilingualSTSTask))


@pytest.mark.parametrize("run", [Run(method="smoe"), Run(overrides={"combination": "sum"})])
def test_a_run_with_other_settings_than_the_models_own_is_refused(model, tmp_path, run):
    results = measure(tmp_path / "in", model, TASKS, run)
    with pytest.raises(ValueError, match=r"only runs whose settings deviate from the model's own \(ssmoe/test-moe\)"):
        prepare_submission(results, tmp_path / "out", tasks())


def test_results_on_corrupted_texts_are_refused(model, tmp_path):
    results = measure(tmp_path / "in", model, TASKS, Run(corruption=Corruption()))
    with pytest.raises(ValueError, match=r"only results on corrupted texts \(replace@0.015\).*ssmoe evaluate"):
        prepare_submission(results, tmp_path / "out", tasks())


def test_a_corrupted_run_that_was_moved_among_the_clean_ones_is_refused_by_its_record(model, tmp_path):
    results = measure(tmp_path / "in", model, TASKS, Run(corruption=Corruption()))
    (tmp_path / "in" / "replace@0.015").rename(tmp_path / "in" / "clean")
    (experiment,) = (tmp_path / "in").rglob("experiments/*")
    for file in experiment.iterdir():
        file.rename(experiment.parent.parent / file.name)
    experiment.rmdir()
    with pytest.raises(ValueError, match=r"measured with \{'corruption': 'replace@0.015'"):
        prepare_submission(results, tmp_path / "out", tasks())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "local/mine"}, "is a model of this machine.*Upload its folder to the hub"),
        ({"name": "baseline/chance"}, "is a model of this machine"),
        ({"revision": "0123456789abcdef"}, "no commit of the hub"),
    ],
)
def test_a_model_that_nobody_else_could_run_is_refused(model, tmp_path, changes, message):
    results = measure(tmp_path / "in", replace(model, **changes), [MockSTSTask])
    with pytest.raises(ValueError, match=message):
        prepare_submission(results, tmp_path / "out", tasks(MockSTSTask))


def test_of_several_models_one_has_to_be_named(model, tmp_path):
    measure(tmp_path / "in", model, [MockSTSTask])
    results = measure(tmp_path / "in", replace(model, name="ssmoe/other"), [MockSTSTask])
    with pytest.raises(ValueError, match=rf"several models: ssmoe/other at {COMMIT}, ssmoe/test-moe at {COMMIT}"):
        prepare_submission(results, tmp_path / "out", tasks(MockSTSTask))
    assert prepare_submission(results, tmp_path / "a", tasks(MockSTSTask), model="ssmoe/other").model == "ssmoe/other"
    with pytest.raises(ValueError, match=r"'ssmoe/othr' is not known.*Did you mean 'ssmoe/other'"):
        prepare_submission(results, tmp_path / "b", tasks(MockSTSTask), model="ssmoe/othr")


def test_an_empty_folder_is_refused_with_the_command_that_fills_it(tmp_path):
    with pytest.raises(ValueError, match=r"holds no results. Measure the model as it is: `ssmoe evaluate"):
        prepare_submission(tmp_path, tmp_path / "out", tasks())


def test_an_existing_output_is_kept_unless_overwriting_is_asked_for(measured, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError):
        prepare_submission(measured, tmp_path / "out", tasks())
    assert (tmp_path / "out" / "mine.txt").read_text(encoding="utf-8") == "mine"
    prepare_submission(measured, tmp_path / "out", tasks(), overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_of_a_task_that_averages_others_the_parts_are_submitted_too(model, tmp_path):
    task = MockAggregatedTask()
    report = evaluate([model], [task], [Run()], tmp_path / "in", options=EvaluationOptions(progress=False))
    assert not report.failures
    submission = prepare_submission(tmp_path / "in", tmp_path / "out", [MockAggregatedTask()])
    parts = [part.metadata.name for part in task.metadata.tasks]
    assert set(submission.tasks) == {task.metadata.name, *parts}
    (tmp_path / "in" / "clean" / "results" / "ssmoe__test-moe" / COMMIT / f"{task.metadata.name}.json").unlink()
    with pytest.raises(ValueError, match="1 of 1 tasks"):
        prepare_submission(tmp_path / "in", tmp_path / "other", [MockAggregatedTask()])


def test_the_command_makes_the_folder_and_says_what_comes_next(ssmoe, measured, tmp_path, monkeypatch):
    monkeypatch.setattr("ssmoe_embed.evaluation.tasks.finding.find_tasks", lambda names: tasks())
    args = ["submit", measured.path, "-o", tmp_path / "out", "--no-mock-run"]
    ran = ssmoe(*args)
    assert ran.status == 0, ran.err
    assert (tmp_path / "out" / CODE).is_file()
    for said in (f"mteb submit-results --output-folder {tmp_path / 'out'} --models {NAME}", "mock run was left out"):
        assert said in ran.out
    assert "exists already" in ssmoe(*args).err


def test_the_command_refuses_a_folder_that_is_not_there(ssmoe, tmp_path):
    ran = ssmoe("submit", tmp_path / "none", "-o", tmp_path / "out")
    assert ran.status == 1
    assert "There is no result folder" in ran.err
