"""Sweeps: every point is measured as the model itself would be, and kept."""

import csv

import pytest
from mteb.mocks import MockRetrievalTask, MockSTSTask
from tiny import TOP_C

import ssmoe_embed
from ssmoe_embed.common import lazy
from ssmoe_embed.embedding.settings import Calibration
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel, SpectralVariants
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder
from ssmoe_embed.evaluation.sweep.running import ROUTERS, Axis, sweep
from ssmoe_embed.evaluation.tasks.corruption import Corruption
from ssmoe_embed.spectral.routers import SpectralRouters

QUIET = EvaluationOptions(progress=False)
UNCALIBRATED = {"calibration": "none"}
SENTENCES = ["It rains.", "The cook made a soup on Monday.", "Why?"]


def tasks():
    return [MockSTSTask(), MockRetrievalTask()]


@pytest.fixture(scope="module")
def swept(built, tmp_path_factory):
    """A sweep over both kinds of axes and its folder; never change it."""
    folder = tmp_path_factory.mktemp("sweep")
    axes = [Axis("top_c", (2, TOP_C)), Axis("alpha", (0.0, 0.5, 1.0))]
    return sweep(built, axes, tasks(), folder, settings=UNCALIBRATED, options=QUIET), folder


@pytest.mark.slow
def test_every_point_has_the_score_of_a_model_made_with_its_settings(swept, olmoe, tmp_path):
    measured, _ = swept
    assert measured.missing == []
    for point in measured.points:
        module = ssmoe_embed.SSMoE.from_base(olmoe, progress=False, **dict(point.values), **UNCALIBRATED)
        model = EvaluatedModel.of(ssmoe_embed.EmbeddingModel(modules=[module]), "test/fresh")
        report = evaluate([model], tasks(), [Run()], tmp_path / point.label, options=QUIET)
        for score in report.scores():
            assert measured.score(point, score.task) == pytest.approx(100 * score.score, abs=1e-3)


def test_at_alpha_zero_the_spectral_routers_do_not_matter(swept):
    measured, _ = swept
    two, five = (
        {p["alpha"]: measured.score(p, "MockRetrievalTask") for p in measured.points if p["top_c"] == c}
        for c in (2, TOP_C)
    )
    assert two[0.0] == five[0.0]


def test_a_point_of_the_models_own_settings_is_the_models_own_result(built, tmp_path):
    axes = [Axis("top_c", (TOP_C,)), Axis("alpha", (0.5,))]
    sweep(built, axes, [MockSTSTask()], tmp_path, options=QUIET)
    (score,) = ResultFolder(tmp_path).scores()
    assert score.is_default
    assert not (tmp_path / ROUTERS).exists()


def test_a_second_run_measures_nothing_and_a_wider_one_only_what_is_new(swept, built, monkeypatch):
    measured, folder = swept
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = sweep(built, measured.axes, tasks(), folder, settings=UNCALIBRATED, options=QUIET)
    assert again.scores == measured.scores
    wider = [measured.axes[0], Axis("alpha", (0.0, 0.5, 0.75, 1.0))]

    def no_making(*_, **__):
        raise AssertionError("spectral routers were made again")

    monkeypatch.setattr(SpectralRouters, "from_checkpoint", no_making)
    more = sweep(built, wider, [MockSTSTask()], folder, settings=UNCALIBRATED, options=QUIET)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(more.scores) == 8
    assert all(more.scores[point, "MockSTSTask"] == measured.scores[point, "MockSTSTask"] for point in measured.points)


def test_hidden_layers_prompts_and_calibrations_are_axes_too(built, tmp_path):
    axes = [Axis("hidden_layer", (-1, -2)), Axis("prompt", ("none", "metaeol"))]
    measured = sweep(built, axes, [MockSTSTask()], tmp_path, settings=UNCALIBRATED, options=QUIET)
    assert measured.missing == []
    for point in measured.points:
        direct = ssmoe_embed.load(built, progress=False, **UNCALIBRATED, **dict(point.values))
        assert direct[0].settings.hidden_layer == point["hidden_layer"]
        model = EvaluatedModel.of(direct, "test/fresh")
        (score,) = evaluate([model], [MockSTSTask()], [Run()], tmp_path / point.label, options=QUIET).scores()
        assert measured.score(point, "MockSTSTask") == pytest.approx(100 * score.score, abs=1e-3)


def test_a_sweep_on_corrupted_texts_is_kept_apart(built, tmp_path):
    axes, corruption = [Axis("alpha", (0.0, 0.9))], Corruption(rate=0.5)
    measured = sweep(
        built, axes, [MockSTSTask()], tmp_path, corruption=corruption, settings=UNCALIBRATED, options=QUIET
    )
    assert (measured.corruption, measured.missing) == ("replace@0.5", [])
    assert ResultFolder(tmp_path).corruptions() == ["replace@0.5"]


def test_a_setting_that_is_varied_and_fixed_is_refused(built, tmp_path):
    with pytest.raises(ValueError, match="alpha cannot be both varied and fixed"):
        sweep(built, [Axis("alpha", (0.0,))], [MockSTSTask()], tmp_path, settings={"alpha": 0.5})


@pytest.mark.parametrize(
    ("axis", "method", "message"),
    [
        (
            Axis("alpha", (0.0, 1.0)),
            "ev",
            "alpha makes no difference to method ev; sweep over it with --method ssmoe\\.",
        ),
        (Axis("top_c", (2, 5)), "moee", "top_c makes no difference to method moee; .*--method ssmoe or ev"),
    ],
)
def test_an_axis_that_makes_no_difference_is_refused(built, tmp_path, axis, method, message):
    with pytest.raises(ValueError, match=message):
        sweep(built, [axis], [MockSTSTask()], tmp_path, settings={"method": method, **UNCALIBRATED}, options=QUIET)


def test_a_variants_vectors_are_those_of_a_model_built_with_its_routers_and_the_model_stays_as_it_is(
    built, olmoe, tmp_path
):
    model = EvaluatedModel.load(built, progress=False)
    own = model.model.encode(SENTENCES)
    variants = SpectralVariants(model, tmp_path, progress=False)
    variant = variants.select({"top_c": 2, "scale": "router"})
    assert variant.loading == {"top_c": 2, "scale": "router"}
    fresh = ssmoe_embed.SSMoE.from_base(olmoe, top_c=2, scale="router", progress=False, **UNCALIBRATED)
    expected = ssmoe_embed.EmbeddingModel(modules=[fresh]).encode(SENTENCES)
    assert abs(variant.model.using(calibration="none").encode(SENTENCES) - expected).max() < 1e-6
    plain = ssmoe_embed.load(built, progress=False, **UNCALIBRATED).encode(SENTENCES)
    assert abs(plain - expected).max() > 1e-3
    assert variants.select({}).loading == {}
    assert (model.model.encode(SENTENCES) == own).all()


def test_a_variant_shares_the_calibration_of_what_no_spectral_router_has_a_part_in(built, tmp_path):
    model = EvaluatedModel.load(built, progress=False)
    module, view = model.model[0], SpectralVariants(model, tmp_path, progress=False).select({"top_c": 2}).model[0]
    for method in ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden"):
        for block in module.settings.changed(method=method).blocks:
            shared = view.calibrations.of(block, Calibration.STANDARDIZE)
            known = module.calibrations.of(block, Calibration.STANDARDIZE)
            assert shared is (known if method in ("router", "smoe", "moee") else None)
    with pytest.raises(ValueError, match="no calibration"):
        model.model.using(method="ev", routers=view.routers).encode(SENTENCES)


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_sweeps_and_writes_the_report(ssmoe, built, tmp_path):
    args = ["sweep", built, "--alpha", "0", "1", "--hidden-layer", "-1", "-2", "--tasks", "WordRelatednessSTS"]
    args += ["--settings", "calibration=none", "--with", "paper", "--quiet", "-o", tmp_path / "out"]
    ran = ssmoe(*args)
    assert ran.status == 0, ran.err
    assert "To choose settings by them is to tune" in " ".join(ran.out.split())
    rows = list(csv.DictReader((tmp_path / "out" / "sweep.csv").open(encoding="utf-8")))
    assert {(row["hidden_layer"], row["alpha"]) for row in rows} == {
        (h, a) for h in ("-1", "-2") for a in ("0.0", "1.0")
    }
    assert all(-100 <= float(row["score"]) <= 100 for row in rows)
    assert len({row["score"] for row in rows}) > 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "varies at least one setting"),
        (["--alpha", "2"], "outside"),
        (["--alpha", "0", "--vary", "alpha=1"], "varied twice"),
        (["--vary", "alpah=1"], "Did you mean 'alpha'"),
        (["--alpha", "0", "--tasks", "WordRelatedness"], "Did you mean 'WordRelatednessSTS'"),
        (["--alpha", "0", "--corrupt", "ladder"], "several corruptions"),
        (["--alpha", "0", "--with", "table6"], "with='table6' is not known"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(ssmoe, built, tmp_path, args, message):
    ran = ssmoe("sweep", built, *args, "-o", tmp_path / "out", "--quiet")
    assert ran.status == 1
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_without_mteb_the_command_says_what_to_install(ssmoe, built, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "find_spec", lambda name: None)
    ran = ssmoe("sweep", built, "--alpha", "2", "-o", tmp_path / "out")
    assert ran.status == 1
    assert "pip install 'ssmoe-embed[mteb]'" in ran.err
