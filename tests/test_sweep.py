"""Sweeps: the axes, that every point is measured as the model itself would be, resuming, and the report."""

import csv
import io

import pytest
from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask
from tiny import TOP_C
from typer.testing import CliRunner

import ssmoe_embed
from ssmoe_embed.cli.app import app
from ssmoe_embed.evaluation.corruption import Corruption
from ssmoe_embed.evaluation.models import EvaluatedModel
from ssmoe_embed.evaluation.report import Options
from ssmoe_embed.evaluation.results import ResultFolder
from ssmoe_embed.evaluation.runner import evaluate
from ssmoe_embed.evaluation.runs import Run
from ssmoe_embed.evaluation.spectral_variants import SpectralVariants, needs_spectral_routers
from ssmoe_embed.evaluation.sweep import ROUTERS, sweep
from ssmoe_embed.evaluation.sweep_axes import Axis, Point, points
from ssmoe_embed.evaluation.sweep_report import csv_text, markdown, plot, write_report, x_axis
from ssmoe_embed.evaluation.sweep_result import MEAN, TEST_SET_WARNING, SweepResult
from ssmoe_embed.spectral.routers import SpectralRouters

QUIET = Options(progress=False)
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


def result(axes, scores, names=("STS12", "STS13")):
    """A sweep's result without its runs; scores in the order of points and tasks."""
    keys = [(point, task) for point in points(axes) for task in names]
    there = {key: score for key, score in zip(keys, scores, strict=True) if score is not None}
    return SweepResult("ssmoe/tiny", tuple(axes), "clean", dict.fromkeys(names, "cosine_spearman"), there)


# --- axes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("alpha=0,0.25,1", (0.0, 0.25, 1.0)),
        ("top_c=5,0.05", (5, 0.05)),
        ("hidden_layer=-1,-2", (-1, -2)),
        ("calibration=none,whiten,none", ("none", "whiten")),
        ("prompt=none,echo,metaeol", ("none", "echo", "metaeol")),
        ("routing_signal=none,logits", (None, "logits")),
        ("top_c=1,1.0", (1, 1.0)),
    ],
)
def test_an_axis_reads_its_values_as_the_setting_has_them(text, values):
    read = Axis.parse(text).values
    assert [(type(value), value) for value in read] == [(type(value), value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha", r"not of the form setting=value"),
        ("alpah=1", r"setting='alpah' is not known.*Did you mean 'alpha'"),
        ("alpha=2", r"alpha=2.0 is outside"),
        ("alpha=much", r"alpha='much' is not a number"),
        ("hidden_layer=1.5", r"hidden_layer='1.5' is not a whole number"),
        ("top_c=0", r"top_c=0 keeps no eigenvector"),
        ("calibration=white", r"calibration='white' is not known.*Did you mean 'whiten'"),
        ("scale=big", r"scale='big' is not known"),
    ],
)
def test_a_wrong_axis_is_refused_before_anything_is_loaded(text, message):
    with pytest.raises(ValueError, match=message):
        Axis.parse(text)


def test_points_are_all_combinations_in_order():
    made = points([Axis("top_c", (5, 50)), Axis("alpha", (0.0, 1.0))])
    assert [point.label for point in made] == [
        "top_c=5, alpha=0.0",
        "top_c=5, alpha=1.0",
        "top_c=50, alpha=0.0",
        "top_c=50, alpha=1.0",
    ]
    assert (made[1].spectral, made[1].embedding) == ({"top_c": 5}, {"alpha": 1.0})


def test_no_axis_and_one_twice_are_refused():
    with pytest.raises(ValueError, match="at least one setting"):
        points([])
    with pytest.raises(ValueError, match="alpha is varied twice"):
        points([Axis("alpha", (0.0,)), Axis("alpha", (1.0,))])


# --- running ------------------------------------------------------------------------------------------------------------


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
    before = {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "tasks.json"
    }
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


def test_a_variants_vectors_are_those_of_a_model_built_with_its_routers_and_the_models_own_come_back(
    built, olmoe, tmp_path
):
    model = EvaluatedModel.load(built, progress=False)
    module = model.model[0]
    own = model.model.encode(SENTENCES)
    calibrations = set(module.calibrations)
    variants = SpectralVariants(model, tmp_path, progress=False)
    variant = variants.select({"top_c": 2, "scale": "router"})
    assert variant.loading == {"top_c": 2, "scale": "router"}
    assert all(not needs_spectral_routers(name) for name in module.calibrations)
    module.configure(calibration="none")
    fresh = ssmoe_embed.SSMoE.from_base(olmoe, top_c=2, scale="router", progress=False, **UNCALIBRATED)
    expected = ssmoe_embed.EmbeddingModel(modules=[fresh]).encode(SENTENCES)
    assert abs(model.model.encode(SENTENCES) - expected).max() < 1e-6
    plain = ssmoe_embed.load(built, progress=False, **UNCALIBRATED).encode(SENTENCES)
    assert abs(plain - expected).max() > 1e-3
    module.configure(calibration="standardize")
    assert variants.select({}).loading == {}
    assert set(module.calibrations) == calibrations
    assert (model.model.encode(SENTENCES) == own).all()


# --- the report ---------------------------------------------------------------------------------------------------------


def test_the_mean_needs_every_task():
    measured = result([Axis("alpha", (0.0, 1.0))], [10, 20, 30, None])
    first, second = measured.points
    assert measured.score(first, MEAN) == 15
    assert measured.score(second, MEAN) is None
    assert measured.missing == [(second, "STS13")]
    assert measured.held_out() == []


def test_held_out_settings_are_chosen_without_the_task_they_are_scored_on():
    axes = [Axis("alpha", (0.0, 1.0))]
    measured = result(axes, [10, 90, 80, 20])  # STS12 likes 1.0, STS13 likes 0.0
    low, high = measured.points
    first, second = measured.held_out()
    assert (first.task, first.chosen, first.score, first.best) == ("STS12", low, 10, 80)
    assert (second.task, second.chosen, second.score, second.best) == ("STS13", high, 20, 90)


def test_markdown_warns_of_tuning_on_the_test_set_and_marks_the_best_of_each_column():
    text = markdown(result([Axis("alpha", (0.0, 1.0))], [10, 90, 80, 20]))
    assert TEST_SET_WARNING in text
    assert "| 0.0 | 10.00 | **90.00** | **50.00** |" in text
    assert "| 1.0 | **80.00** | 20.00 | **50.00** |" in text
    assert "| STS12 | alpha=0.0 | 10.00 | 80.00 |" in text


def test_the_papers_table_6_stands_beside_the_tasks_and_settings_that_it_has():
    names = ("EmotionClassification", "STS12")
    text = markdown(result([Axis("alpha", (0.0, 1.0))], [10, 90, 80, 20], names), with_paper=True)
    assert "| alpha | 0.9 | 32.7 |" in text
    assert "topc" not in text
    assert "| top_c |" not in text
    other = markdown(result([Axis("alpha", (0.0, 1.0))], [10, 90, 80, 20]), with_paper=True)
    assert "has none of these tasks and settings" in other


def test_csv_has_a_line_for_every_point_and_task():
    rows = list(csv.DictReader(io.StringIO(csv_text(result([Axis("alpha", (0.0, 1.0))], [10, 20, 30, None])))))
    assert [(row["alpha"], row["task"], row["score"]) for row in rows] == [
        ("0.0", "STS12", "10.0000"),
        ("0.0", "STS13", "20.0000"),
        ("1.0", "STS12", "30.0000"),
        ("1.0", "STS13", ""),
    ]


def test_scores_are_plotted_against_alpha_else_numbers_else_the_longest_axis():
    alpha, top_c, prompt = (
        Axis("alpha", (0.0, 1.0)),
        Axis("top_c", (1, 2, 3)),
        Axis("prompt", ("none", "echo", "style", "tone")),
    )
    assert x_axis([top_c, alpha, prompt]) is alpha
    assert x_axis([prompt, top_c]) is top_c
    assert x_axis([prompt]) is prompt


@pytest.mark.parametrize(
    "axes", [[Axis("alpha", (0.0, 1.0))], [Axis("prompt", ("none", "echo"))], [Axis("top_c", (5, 50))]]
)
def test_the_report_is_written_with_a_plot(axes, tmp_path):
    written = write_report(result(axes, [10, 20, 30, None]), tmp_path, with_paper=True)
    assert sorted(path.name for path in written) == ["sweep.csv", "sweep.md", "sweep.png"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_draws_the_measured_scores_and_the_papers(monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}
    original = Axes.plot

    def record(self, x, y, *args, **kwargs):
        drawn.setdefault(kwargs["label"], []).append((list(x), list(y)))
        return original(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", record)
    axes = [Axis("top_c", (5, 50)), Axis("alpha", (1.0, 0.0))]
    plot(result(axes, [10, 20, 30, 40], ("EmotionClassification",)), with_paper=True)
    assert drawn["top_c=5"] == [([0.0, 1.0], [20, 10])]
    assert drawn["top_c=50"] == [([0.0, 1.0], [40, 30])]
    ((_, scores),) = drawn["paper, OLMoE-7B (table 6)"]
    assert scores == [26.1, 27.5, 29.9, 30.2, 32.7, 28.9]


def test_a_point_names_a_prompt_of_ones_own_shortly():
    assert Point((("prompt", 'A long "{text}" template'),)).label.startswith("prompt=custom-")


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_sweeps_and_writes_the_report(built, tmp_path):
    args = ["sweep", str(built), "--alpha", "0", "1", "--hidden-layer", "-1", "-2", "--tasks", "WordRelatednessSTS"]
    args += ["--settings", "calibration=none", "--with", "paper", "--quiet", "-o", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, args)
    assert ran.exit_code == 0, ran.output
    assert "To choose settings by them is to tune" in " ".join(ran.output.split())
    rows = list(csv.DictReader((tmp_path / "out" / "sweep.csv").open()))
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
def test_the_command_refuses_what_it_cannot_do(built, tmp_path, args, message):
    ran = CliRunner().invoke(app, ["sweep", str(built), *args, "-o", str(tmp_path / "out"), "--quiet"])
    assert ran.exit_code == 1
    assert message in str(ran.exception)
    assert not (tmp_path / "out").exists()
