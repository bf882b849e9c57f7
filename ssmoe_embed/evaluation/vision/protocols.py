"""The paper's image tasks: mteb's where they are the same, and under names of their own where the protocol differs.

The paper asks for every class in 80 templates and takes the mean of the unit vectors (https://arxiv.org/abs/2605.30992, and
CLIP's own evaluation, https://arxiv.org/abs/2103.00020); mteb asks in one. Retrieval is mteb's, whose `hit_rate_at_k` is the
paper's R@k, on other images: the paper takes COCO's val2017 and all 31,783 images of Flickr30k, which no hub task has.
`CaptionedImages` reads these from a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from numpy.typing import NDArray

SUFFIX = "Paper"
CLASSIFICATION = ("CIFAR10ZeroShot", "CIFAR100ZeroShot", "STL10ZeroShot", "Caltech101ZeroShot", "Imagenet1kZeroShot")
CAPTIONED = (
    "MSCOCOI2TRetrievalPaper",
    "MSCOCOT2IRetrievalPaper",
    "Flickr30kI2TRetrievalPaper",
    "Flickr30kT2IRetrievalPaper",
)
RETRIEVAL = ("MSCOCOI2TRetrieval", "MSCOCOT2IRetrieval", "Flickr30kI2TRetrieval", "Flickr30kT2IRetrieval")
_NAME = re.compile(r"^a photo of an? (.*?)\.?$")


class PromptEnsemble(AbsTaskZeroShotClassification):
    """A zero-shot task in which a class is the mean of its name's vectors in several templates.

    Attributes:
        templates: What the names are put into, with `{}`; by default CLIP's 80 of open_clip.
    """

    templates: Sequence[str] = ()

    def _evaluate_subset(self, model: Any, data_split: Any, **kwargs: Any) -> Any:
        """See `AbsTaskZeroShotClassification._evaluate_subset`."""
        from mteb._create_dataloaders import _create_dataloader_from_texts, create_dataloader

        place = {name: kwargs[name] for name in ("hf_split", "hf_subset")} | {"task_metadata": self.metadata}
        options = kwargs["encode_kwargs"]
        names = [_NAME.sub(r"\1", one) for one in self.get_candidate_labels()]
        forms = list(self.templates) or openai_templates()
        texts = [form.format(name) for name in names for form in forms]
        vectors = unit(model.encode(_create_dataloader_from_texts(texts, **options), **place, **options))
        classes = unit(vectors.reshape(len(names), len(forms), -1).mean(axis=1))  # [C·P,D] → [C,D]
        chosen = data_split.select_columns([self.input_column_name, self.label_column_name])
        loader = create_dataloader(chosen, input_column=self.input_column_name, task_metadata=self.metadata, **options)
        cosines = unit(model.encode(loader, **place, **options)) @ classes.T
        if kwargs.get("prediction_folder"):  # the nearest class alone: all cosines of ImageNet would be a gigabyte
            where = {name: kwargs[name] for name in ("hf_split", "hf_subset")}
            self._save_task_predictions(cosines.argmax(axis=1).tolist(), model, kwargs["prediction_folder"], **where)
        labels = self._normalize_labels(chosen[self.label_column_name], self.get_candidate_labels())
        return self._calculate_scores(labels, cosines)


class CaptionedImages(AbsTaskRetrieval):
    """Captions by images, or images by captions, of a folder as its publisher packed it.

    Attributes:
        captioned: Reads images with their captions from the folder.
        by_text: Whether captions are the queries.
        data_loaded: Whether the data are there.
    """

    captioned: Callable[[Path], dict[Path, list[str]]]
    by_text: bool
    data_loaded: bool = False

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Refuse, as no hub has these data.

        Raises:
            FileNotFoundError: Always; `load_folder` reads a folder.
        """
        del num_proc, kwargs
        if not self.data_loaded:
            name = self.metadata.dataset["path"]
            raise FileNotFoundError(
                f"{self.metadata.name} reads a folder: put {FOLDERS[name]} into DIR/{name}, --dataset-dir DIR."
            )

    def load_folder(self, folder: Path) -> None:
        """Read a folder; see `FOLDERS` for what it holds.

        Raises:
            FileNotFoundError: It lacks files.
        """
        shown = type(self).captioned(folder)
        places = list(shown)
        said = [(f"t{number}-{i}", text) for number, place in enumerate(places) for i, text in enumerate(shown[place])]
        texts = Dataset.from_dict({"id": [one for one, _ in said], "text": [text for _, text in said]})
        rows = {"id": [f"i{number}" for number in range(len(places))], "image": [str(place) for place in places]}
        images = Dataset.from_dict(rows, features=Features({"id": Value("string"), "image": Image()}))
        relevant: dict[str, dict[str, int]] = {}
        for text, _ in said:
            image = f"i{text[1:].partition('-')[0]}"
            query, document = (text, image) if self.by_text else (image, text)
            relevant.setdefault(query, {})[document] = 1
        queries, corpus = (texts, images) if self.by_text else (images, texts)
        split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def flickr30k(folder: Path) -> dict[Path, list[str]]:
    """All images of Flickr30k with their five captions, in the order of `results_20130124.token`."""
    found: dict[Path, list[str]] = {}
    for line in (folder / "results_20130124.token").read_text(encoding="utf-8").splitlines():
        name, _, text = line.partition("\t")
        found.setdefault(folder / "flickr30k-images" / name.partition("#")[0], []).append(text)
    return found


def coco_val2017(folder: Path) -> dict[Path, list[str]]:
    """The images of COCO's val2017 with the first five captions of each, by rising id."""
    read = json.loads((folder / "annotations" / "captions_val2017.json").read_text(encoding="utf-8"))
    said: dict[int, list[str]] = {}
    for one in read["annotations"]:
        said.setdefault(one["image_id"], []).append(one["caption"])
    images = sorted(read["images"], key=lambda one: int(one["id"]))
    return {folder / "val2017" / one["file_name"]: said[one["id"]][:5] for one in images}


FOLDERS = {
    "flickr30k": "results_20130124.token and the folder flickr30k-images",
    "coco": "annotations/captions_val2017.json and the folder val2017",
}
"""What the data of `CaptionedImages` consist of, by the name of their folder."""


def captioned_task(name: str) -> AbsTask:
    """The task of `CAPTIONED` of that name."""
    import mteb

    own = mteb.get_task(name.removesuffix(SUFFIX))
    folder, reads = ("coco", coco_val2017) if name.startswith("MSCOCO") else ("flickr30k", flickr30k)
    dataset = {"path": folder, "revision": "local"}
    metadata = own.metadata.model_copy(update={"name": name, "dataset": dataset, "eval_splits": ["test"]})
    fields = {"metadata": metadata, "captioned": staticmethod(reads), "by_text": "T2I" in name}
    made: AbsTask = type(name, (CaptionedImages,), fields | {"__doc__": CaptionedImages.__doc__})()
    return made


def paper_vision_tasks() -> list[AbsTask]:
    """The tasks of the paper's tables 3 and 7."""
    import mteb

    own = [with_templates(mteb.get_task(name)) for name in CLASSIFICATION]
    return [*own, *mteb.get_tasks(tasks=list(RETRIEVAL))]


def with_templates(task: AbsTask, templates: Sequence[str] = ()) -> AbsTask:
    """A zero-shot task under the paper's protocol, which is told by its name.

    Args:
        task: A zero-shot task of mteb's kind.
        templates: By default CLIP's 80.
    """
    kind = type(task)
    metadata = task.metadata.model_copy(update={"name": task.metadata.name + SUFFIX})
    fields = {"metadata": metadata, "templates": tuple(templates), "__doc__": PromptEnsemble.__doc__}
    made: AbsTask = type(f"{kind.__name__}{SUFFIX}", (PromptEnsemble, kind), fields)()
    return made


def openai_templates() -> list[str]:
    """CLIP's 80 templates for the classes of ImageNet, as open_clip has them.

    Raises:
        ImportError: open_clip is not installed.
    """
    try:
        from open_clip import OPENAI_IMAGENET_TEMPLATES
    except ImportError:
        raise ImportError("The paper's protocol needs CLIP's 80 templates: pip install open_clip_torch.") from None
    return [str(form("{}")) for form in OPENAI_IMAGENET_TEMPLATES]


def unit(vectors: Any) -> NDArray[np.float64]:
    """Vectors `[n,D]` scaled to length 1."""
    numbers = np.asarray(vectors, dtype=np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(numbers, axis=1, keepdims=True)
    return numbers / lengths
