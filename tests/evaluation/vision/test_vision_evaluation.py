"""Models of images and texts are measured by mteb's image tasks, clean and under noise, and by the paper's protocol."""

import csv
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from clip_moe import published
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from ssmoe_embed import EmbeddingModel, SSMoEVision
from ssmoe_embed.evaluation.mteb import runner
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.evaluation.paper import images as images_of_the_paper
from ssmoe_embed.evaluation.results.folder import ResultFolder
from ssmoe_embed.evaluation.tasks.finding import find_tasks
from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local
from ssmoe_embed.evaluation.vision import tasks as image_tasks
from ssmoe_embed.evaluation.vision.encoder import STRENGTHS, ImageCorruption, ladder
from ssmoe_embed.evaluation.vision.tasks import SPLIT, EmojiConceptZeroShot, with_templates
from ssmoe_embed.vision.checkpoint import from_published

PIXELS = np.random.default_rng(0).integers(60, 200, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = {"<|startoftext|>": 98, "<|endoftext|>": 99, "a</w>": 3, "b</w>": 4, "c</w>": 5}
    images = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    processor = CLIPProcessor(images, CLIPTokenizer(vocab=words, merges=[], model_max_length=30))
    folder = tmp_path_factory.mktemp("models") / "clip"
    EmbeddingModel(modules=[SSMoEVision(from_published(published()), processor)], device="cpu").save(str(folder))
    return folder


class Squares(AbsTaskZeroShotClassification):
    """Three classes of squares that say nothing."""

    metadata = EmojiConceptZeroShot.metadata.model_copy(update={"name": "SquaresZeroShot"})
    data_loaded = False

    def load_data(self, num_proc=None, **kwargs):
        rng = np.random.default_rng(0)
        images = [Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)) for _ in range(6)]
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
        rows = {"image": images, "label": [0, 1, 2, 0, 1, 2]}
        self.dataset = {SPLIT: Dataset.from_dict(rows, features=features)}
        self.data_loaded = True

    def get_candidate_labels(self):
        return [f"a photo of a {name}." for name in "abc"]


@pytest.mark.parametrize(
    ("name", "spread"), [("gaussian@0.1", 0.1), ("uniform@0.2", 0.2 / 3**0.5), ("salt-pepper@0.3", None)]
)
def test_noise_is_as_strong_as_it_says_and_depends_on_the_image_and_the_seed_alone(name, spread):
    corruption = ImageCorruption.parse(name)
    assert corruption.name == name
    noisy = np.asarray(corruption.apply(PIXELS), dtype=float)
    if spread is None:
        touched = ((noisy == 0) | (noisy == 255)).all(axis=2).mean()
        assert touched == pytest.approx(0.3, abs=0.06)
    else:
        assert (noisy - PIXELS).std() / 255 == pytest.approx(spread, rel=0.06)
    np.testing.assert_array_equal(corruption.apply(Image.fromarray(PIXELS)), noisy)
    assert (np.asarray(ImageCorruption.parse(f"{name},seed=1").apply(PIXELS)) != noisy).any()
    other = PIXELS.copy()
    other[0, 0, 0] += 1
    assert (np.asarray(corruption.apply(other), dtype=float) - noisy)[1:].any()


def test_a_ladder_rises_and_a_wrong_name_is_refused():
    assert [one.strength for one in ladder()] == list(STRENGTHS)
    assert [run.corruption_name for run in grid(corruptions=["image-ladder"])][:2] == ["clean", "gaussian@0.05"]
    for wrong in ("gaussian@2", "gaussian@x", "gauss@0.1"):
        with pytest.raises(ValueError, match=r"corruption=|strength="):
            ImageCorruption.parse(wrong)


def test_a_model_is_measured_under_every_routing_and_noise_and_resumes(folder, tmp_path):
    task = Squares()
    runs = grid(methods=["smoe", "ssmoe", "paper"], corruptions=["none", "gaussian@0.3"])
    report = runner.evaluate([str(folder)], [task], runs, tmp_path)
    assert [str(one) for one in report.failures] == []
    assert report.done == 6
    found = {(score.method, score.corruption): score.score for score in report.scores()}
    assert set(found) == {(m, c) for m in ("smoe", "ssmoe", "paper") for c in ("clean", "gaussian@0.3")}
    again = runner.evaluate([str(folder)], [task], runs, tmp_path)
    assert (again.done, again.kept) == (0, 6)

    import ssmoe_embed

    model = ssmoe_embed.load(folder, device="cpu", progress=False)
    task.load_data()
    images, texts = model.encode(list(task.dataset[SPLIT]["image"])), model.encode(task.get_candidate_labels())
    chosen = np.asarray(model.similarity(images, texts)).argmax(axis=1)
    assert found["smoe", "clean"] == pytest.approx((chosen == np.array([0, 1, 2, 0, 1, 2])).mean())


def test_the_papers_protocol_takes_the_mean_of_several_templates(folder, tmp_path):
    templates = ["{} a", "b {} b", "c {}"]
    task = with_templates(Squares(), templates)
    assert task.metadata.name == "SquaresZeroShotPaper"
    report = runner.evaluate([str(folder)], [task], grid(), tmp_path)
    assert [str(one) for one in report.failures] == []

    import ssmoe_embed

    model = ssmoe_embed.load(folder, device="cpu", progress=False)
    task.load_data()

    def unit(vectors):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    classes = unit(np.stack([unit(model.encode([form.format(n) for form in templates])).mean(0) for n in "abc"]))
    chosen = (unit(model.encode(list(task.dataset[SPLIT]["image"]))) @ classes.T).argmax(axis=1)
    [score] = report.scores()
    assert score.score == pytest.approx((chosen == np.array([0, 1, 2, 0, 1, 2])).mean())


@pytest.mark.slow
def test_the_offline_tasks_run(folder, tmp_path):
    report = runner.evaluate([str(folder)], find_tasks(["offline-vision"]), grid(), tmp_path)
    assert [str(one) for one in report.failures] == []
    assert len(report.scores()) == 4


def test_words_are_not_corrupted_of_images(folder, tmp_path):
    report = runner.evaluate([str(folder)], [Squares()], grid(corruptions=["replace@0.1"]), tmp_path)
    assert "corrupts texts" in str(report.failures[0])


@pytest.fixture(scope="module")
def paper_data(tmp_path_factory):
    """Two of the paper's data sets in small: CIFAR-10 as the hub has it, Flickr30k as its publisher packed it."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(1)

    def pictures(count):
        return [Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)) for _ in range(count)]

    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"img": pictures(9), "label": [0, 1, 2] * 3}, features=features)
    DatasetDict({"test": rows}).save_to_disk(root / "CIFAR10ZeroShotPaper")
    (root / "flickr30k" / "flickr30k-images").mkdir(parents=True)
    lines = []
    for number, picture in enumerate(pictures(6)):
        picture.save(root / "flickr30k" / "flickr30k-images" / f"{number}.png")
        lines += [f"{number}.png#{i}\t{'abc'[number % 3]} {'abc'[i]}" + " c" * number for i in range(2)]
    (root / "flickr30k" / "results_20130124.token").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def paper_results(folder, paper_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    names = ["CIFAR10ZeroShotPaper", "Flickr30kI2TRetrievalPaper", "Flickr30kT2IRetrievalPaper"]
    tasks = [use_local(task, LocalData(paper_data)) for task in find_tasks(names)]
    runs = grid(methods=["smoe", "paper"], corruptions=["none", "gaussian@0.3"])
    options = EvaluationOptions(predictions=True)
    with patch.object(image_tasks, "openai_templates", lambda: ["{} a", "b {}"]):
        report = runner.evaluate([str(folder)], tasks, runs, output, options=options)
    assert [str(one) for one in report.failures] == []
    return output


def test_all_of_flickr30k_is_searched_in_both_directions(folder, paper_data, paper_results):
    import ssmoe_embed

    lines = (paper_data / "flickr30k" / "results_20130124.token").read_text(encoding="utf-8").splitlines()
    owner = np.array([int(line.partition(".")[0]) for line in lines])
    model = ssmoe_embed.load(folder, device="cpu", progress=False)
    images = model.encode([str(paper_data / "flickr30k" / "flickr30k-images" / f"{number}.png") for number in range(6)])
    texts = model.encode([line.partition("\t")[2] for line in lines])
    cosines = np.asarray(model.similarity(images, texts))  # [6,12]
    for name, found, right in (
        ("Flickr30kI2TRetrievalPaper", cosines, owner[None] == np.arange(6)[:, None]),
        ("Flickr30kT2IRetrievalPaper", cosines.T, owner[:, None] == np.arange(6)[None]),
    ):
        first = np.argsort(-found, axis=1, kind="stable")[:, :5]
        wanted = np.take_along_axis(right, first, axis=1).any(axis=1).mean()
        [score] = [
            one
            for one in ResultFolder(paper_results).scores()
            if (one.task, one.method, one.corruption) == (name, "smoe", "clean")
        ]
        assert images_of_the_paper.metric_of(score, "hit_rate_at_5") == pytest.approx(wanted, abs=1e-5)


def test_a_folder_without_captions_is_named(tmp_path):
    (tmp_path / "flickr30k").mkdir()
    (tmp_path / "flickr30k" / "results_20130124.token").write_text("", encoding="utf-8")
    [task] = find_tasks(["Flickr30kT2IRetrievalPaper"])
    with pytest.raises(ValueError, match=r"flickr30k has no captions"):
        use_local(task, LocalData(tmp_path)).load_data()


def test_measured_images_stand_beside_the_papers_with_a_paired_bootstrap(ssmoe, paper_data, paper_results, tmp_path):
    model = ResultFolder(paper_results).scores()[0].model
    arguments = ["compare", paper_results, "--with", "paper", "--dataset-dir", paper_data, "--resamples", 200]
    ran = ssmoe(*arguments, "-o", tmp_path / "paper.csv")
    assert ran.status == 0, ran.err
    lines = list(csv.DictReader((tmp_path / "paper.csv").open(encoding="utf-8")))
    assert {line["model"] for line in lines} == {model}
    by_key = {(line["table"], line["dataset"], line["metric"], line["corruption"]): line for line in lines}
    flickr = by_key["4", "Flickr30k I2T", "hit_rate_at_1", "clean"]
    assert [flickr[name] for name in ("paper_learned", "paper_spectral", "paper_low", "paper_p")] == [
        "61.8",
        "62.3",
        "0.15",
        "0.001",
    ]
    assert float(flickr["low"]) <= float(flickr["spectral"]) - float(flickr["learned"]) <= float(flickr["high"])
    noisy = by_key["7", "CIFAR-10", "accuracy", "gaussian@0.3"]
    assert (noisy["paper_learned"], noisy["paper_spectral"]) == ("66.7", "66.9")
    assert 0 < float(noisy["p"]) <= 1
    assert by_key["3", "COCO T2I", "hit_rate_at_10", "clean"]["reason"] == "not measured"
    assert by_key["7", "ImageNet-O", "accuracy", "clean"]["reason"] == "the paper names no protocol"
    assert len([line for line in lines if line["corruption"] == "clean"]) == 12 + 6 + 6


def test_a_comparison_with_the_papers_images_needs_one_model(ssmoe, paper_results):
    ran = ssmoe("compare", paper_results, "--with", "paper", "--model", "other/one")
    assert ran.status != 0
    assert "measured here: none" in ran.err


def test_one_method_under_two_settings_is_not_compared_as_if_it_were_one(paper_results, monkeypatch):
    scores = ResultFolder(paper_results).scores()
    one = next(score for score in scores if score.method == "paper" and score.task == "CIFAR10ZeroShotPaper")
    other = replace(one, settings={"dtype": "bfloat16"})
    monkeypatch.setattr(ResultFolder, "scores", lambda self: [*scores, other])
    monkeypatch.setattr(images_of_the_paper, "paired_bootstrap", lambda *_, **__: None)
    with pytest.raises(ValueError, match="measured with paper under several settings"):
        images_of_the_paper.compare_images(ResultFolder(paper_results), dict.fromkeys(images_of_the_paper.IMAGE_TASKS))
