"""mteb's own kinds of image tasks run on a model of images and texts, on data of their layout."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

from ssmoe_embed.evaluation.mteb import runner
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.evaluation.tasks.finding import find_tasks
from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local

NAMES = ["a", "b", "c"]


def pictures(count, seed=0):
    """Pictures of three kinds that any tower tells apart: red, green or blue with noise."""
    rng, made = np.random.default_rng(seed), []
    for place in range(count):
        pixels = rng.integers(0, 80, (16, 16, 3))
        pixels[..., place % 3] += 150
        made.append(Image.fromarray(pixels.astype(np.uint8)))
    return made


def tables():
    """Data by task name, with the columns that the hub's have."""
    image, label, text = ImageFeature(), ClassLabel(names=NAMES), Value("string")
    kinds = [place % 3 for place in range(24)]

    def labelled(column, seed=0):
        rows = {column: pictures(24, seed), "label": kinds}
        return Dataset.from_dict(rows, features=Features({column: image, "label": label}))

    pairs = {"sentence1": pictures(12, 1), "sentence2": pictures(12, 2)[::-1], "score": [i / 3 for i in range(12)]}
    pair = Features({"sentence1": image, "sentence2": image, "score": Value("float64")})
    told = {"image": pictures(6), "true_caption": ["a b"] * 6, "false_caption": ["b a"] * 6}
    several = {"image": pictures(24), "classes": [[kind] for kind in kinds]}
    return {
        "STL10": {"train": labelled("image"), "test": labelled("image", 3)},
        "CIFAR10Clustering": {"test": labelled("img")},
        "STS12VisualSTS": {"test": Dataset.from_dict(pairs, features=pair)},
        "AROVisualRelation": {
            "test": Dataset.from_dict(
                told, features=Features({"image": image, "true_caption": text, "false_caption": text})
            )
        },
        "VOC2007": {
            split: Dataset.from_dict(several, features=Features({"image": image, "classes": Sequence(Value("int64"))}))
            for split in ("train", "test")
        },
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("mieb")
    for name, splits in tables().items():
        DatasetDict(splits).save_to_disk(root / name)
    return root


@pytest.mark.slow
def test_every_kind_of_image_task_runs(data, tmp_path):
    tasks = [use_local(task, LocalData(data)) for task in find_tasks(list(tables()))]
    report = runner.evaluate(["ssmoe/tiny-clip"], tasks, grid(methods=["smoe"]), tmp_path)
    assert [str(one) for one in report.failures] == []
    found = {one.task: one for one in report.scores()}
    assert set(found) == set(tables())
    assert found["STL10"].score > 0.9  # a linear probe tells red, green and blue apart
    assert found["CIFAR10Clustering"].score > 0.5
    kinds = {one.task_type for one in found.values()}
    assert kinds == {"ImageClassification", "ImageClustering", "VisualSTS(eng)", "Compositionality"}
