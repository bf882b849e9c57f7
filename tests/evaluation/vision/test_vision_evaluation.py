"""Models of images and texts are measured by mteb's image tasks, clean and under noise, and by the paper's protocol."""

import numpy as np
import pytest
from clip_moe import published
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from ssmoe_embed import EmbeddingModel, SSMoEVision
from ssmoe_embed.evaluation.mteb import runner
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.evaluation.tasks.finding import find_tasks
from ssmoe_embed.evaluation.vision.corruption import STRENGTHS, ImageCorruption, ladder
from ssmoe_embed.evaluation.vision.offline import SPLIT, EmojiConceptZeroShot
from ssmoe_embed.evaluation.vision.protocols import with_templates
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
