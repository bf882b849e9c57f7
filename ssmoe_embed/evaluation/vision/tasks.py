"""Image tasks: mteb's, under names of their own where the paper's protocol differs, and those whose data ship (emoji).

The paper asks for every class in 80 templates and takes the mean of the unit vectors (https://arxiv.org/abs/2605.30992, and
CLIP's own evaluation, https://arxiv.org/abs/2103.00020); mteb asks in one. Retrieval is mteb's, whose `hit_rate_at_k` is the
paper's R@k, on other images: the paper takes COCO's val2017 and all 31,783 images of Flickr30k, which no hub task has.
`CaptionedImages` reads these from a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, Features, Image, Value
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from numpy.typing import NDArray

from ssmoe_embed.data import emoji_concepts, emoji_pictures

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

        where = {name: kwargs[name] for name in ("hf_split", "hf_subset")}
        place = {**where, "task_metadata": self.metadata}
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
            ValueError: Its captions are empty.
        """
        shown = type(self).captioned(folder)
        images = {f"i{number}": str(place) for number, place in enumerate(shown)}
        said: list[tuple[str, str, str]] = []
        for image, texts in zip(images, shown.values(), strict=True):
            said += [(f"t{image[1:]}-{i}", text, image) for i, text in enumerate(texts)]
        if not said:
            raise ValueError(f"{folder} has no captions; fetch the data of {self.metadata.name} again.")
        self.dataset = {"default": {"test": _searched(said, images, by_text=self.by_text)}}
        self.data_loaded = True


def _searched(texts: Iterable[tuple[str, str, str]], images: Mapping[str, Any], *, by_text: bool) -> dict[str, Any]:
    """A split as mteb's retrieval reads it, of images by id, and of texts: each its id, itself and the id of its image."""
    ids, said, owners = zip(*texts, strict=True)
    told = Dataset.from_dict({"id": ids, "text": said})
    features = Features({"id": Value("string"), "image": Image()})
    shown = Dataset.from_dict({"id": list(images), "image": list(images.values())}, features=features)
    relevant: dict[str, dict[str, int]] = {}
    for query, document in zip(ids, owners, strict=True) if by_text else zip(owners, ids, strict=True):
        relevant.setdefault(query, {})[document] = 1
    queries, corpus = (told, shown) if by_text else (shown, told)
    return {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}


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
    own = mteb.get_task(name.removesuffix(SUFFIX))
    folder, reads = ("coco", coco_val2017) if name.startswith("MSCOCO") else ("flickr30k", flickr30k)
    dataset = {"path": folder, "revision": "local"}
    metadata = own.metadata.model_copy(update={"name": name, "dataset": dataset, "eval_splits": ["test"]})
    fields = {"metadata": metadata, "captioned": staticmethod(reads), "by_text": "T2I" in name}
    made: AbsTask = type(name, (CaptionedImages,), fields | {"__doc__": CaptionedImages.__doc__})()
    return made


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


SPLIT = "test"
NAMED = "a picture of {}"


def _metadata(name: str, category: str, description: str) -> TaskMetadata:
    zero_shot = name.endswith("ZeroShot")
    digest = hashlib.sha256(b"".join(content for _, content in emoji_pictures("twemoji"))).hexdigest()[:40]
    return TaskMetadata(
        name=name,
        type="ZeroShotClassification" if zero_shot else "Any2AnyRetrieval",
        category=category,
        main_score="accuracy" if zero_shot else "hit_rate_at_5",
        description=description,
        dataset={"path": "ssmoe_embed/data/emoji/twemoji.zip", "revision": digest},
        task_subtypes=[],
        reference="https://github.com/jdecked/twemoji",
        date=("2014-01-01", "2026-11-27"),
        domains=["Web"],
        license="cc-by-4.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        modalities=["text", "image"],
    )


def _shown(*, held_out: bool) -> dict[str, dict[str, Any]]:
    """Twemoji's drawings, by name, of the concepts that the bundled model was trained on, or of the others."""
    from ssmoe_embed.vision.inputs import read_image

    pictures, found = dict(emoji_pictures("twemoji")), {}
    for one in emoji_concepts():
        if one["held_out"] == held_out and one["key"] in pictures:
            buffer = io.BytesIO()
            read_image(pictures[one["key"]]).save(buffer, "PNG")
            found[one["label"]] = {"bytes": buffer.getvalue(), "path": None}
    return found


class _EmojiZeroShot(AbsTaskZeroShotClassification):
    """Whose name a picture is."""

    data_loaded: bool = False
    held_out = False

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read what ships."""
        del num_proc, kwargs
        if self.data_loaded:
            return
        shown = _shown(held_out=self.held_out)
        self._names = list(shown)
        rows = {"image": list(shown.values()), "label": list(range(len(shown)))}
        features = Features({"image": Image(), "label": Value("int64")})
        self.dataset = {SPLIT: Dataset.from_dict(rows, features=features)}
        self.data_loaded = True

    def get_candidate_labels(self) -> list[str]:
        """The names, as they are asked for."""
        return [NAMED.format(name) for name in self._names]


class EmojiStyleZeroShot(_EmojiZeroShot):
    """Twemoji's drawings of emoji whose other drawings the bundled model saw."""

    metadata = _metadata(
        "EmojiStyleZeroShot",
        "i2t",
        "Which emoji a drawing of Twemoji's is. ssmoe/tiny-clip saw these emoji, in other styles.",
    )


class EmojiConceptZeroShot(_EmojiZeroShot):
    """Twemoji's drawings of emoji that the bundled model never saw."""

    held_out = True
    metadata = _metadata(
        "EmojiConceptZeroShot",
        "i2t",
        "Which emoji a drawing of Twemoji's is. ssmoe/tiny-clip saw neither these emoji nor their names.",
    )


class _EmojiRetrieval(AbsTaskRetrieval):
    """Pictures by names, or names by pictures, of held-out emoji."""

    data_loaded: bool = False
    by_text = True

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Read what ships."""
        del num_proc, kwargs
        if self.data_loaded:
            return
        shown = _shown(held_out=True)
        ids = {name: hashlib.sha256(name.encode()).hexdigest()[:16] for name in shown}  # so ties are broken by chance
        texts = [(f"t{one}", NAMED.format(name), f"i{one}") for name, one in ids.items()]
        images = {f"i{ids[name]}": image for name, image in shown.items()}
        self.dataset = {"default": {SPLIT: _searched(texts, images, by_text=self.by_text)}}
        self.data_loaded = True


class EmojiT2IRetrieval(_EmojiRetrieval):
    """A held-out emoji's picture by its name."""

    metadata = _metadata(
        "EmojiT2IRetrieval",
        "t2i",
        "Twemoji's drawing of an emoji by its name; ssmoe/tiny-clip saw none of these emoji.",
    )


class EmojiI2TRetrieval(_EmojiRetrieval):
    """A held-out emoji's name by its picture."""

    by_text = False
    metadata = _metadata(
        "EmojiI2TRetrieval",
        "i2t",
        "The name of an emoji by Twemoji's drawing of it; ssmoe/tiny-clip saw none of these emoji.",
    )


OFFLINE_VISION: tuple[type[AbsTask], ...] = (
    EmojiStyleZeroShot,
    EmojiConceptZeroShot,
    EmojiT2IRetrieval,
    EmojiI2TRetrieval,
)
OFFLINE_NAMES = tuple(kind.metadata.name for kind in OFFLINE_VISION)
"""The image tasks whose data come with this package."""


def vision_tasks(*, paper: bool) -> list[AbsTask]:
    """The image tasks of the paper's tables 3 and 7, or those that ship."""
    if not paper:
        return [kind() for kind in OFFLINE_VISION]
    return [*(with_templates(mteb.get_task(name)) for name in CLASSIFICATION), *mteb.get_tasks(tasks=list(RETRIEVAL))]


def vision_task(name: str) -> AbsTask | None:
    """The image task of that name that ships, or mteb's under the paper's protocol; None if there is none."""
    if name in OFFLINE_NAMES:
        return next(task for task in vision_tasks(paper=False) if task.metadata.name == name)
    if name in CAPTIONED:
        return captioned_task(name)
    plain = name.removesuffix(SUFFIX)
    return with_templates(mteb.get_task(plain)) if name != plain and plain in CLASSIFICATION else None
