"""Image tasks by name, and those whose data ship: emoji by their names, in a style and of concepts held out."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import mteb
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from PIL import Image

from ssmoe_embed.data import emoji_concepts, emoji_pictures
from ssmoe_embed.evaluation.vision.protocols import (
    CAPTIONED,
    CLASSIFICATION,
    SUFFIX,
    captioned_task,
    paper_vision_tasks,
    with_templates,
)

SPLIT = "test"
NAMED = "a picture of {}"
_ABOUT: dict[str, Any] = {
    "reference": "https://github.com/jdecked/twemoji",
    "date": ("2014-01-01", "2026-11-27"),
    "domains": ["Web"],
    "license": "cc-by-4.0",
    "annotations_creators": "derived",
    "dialect": [],
    "sample_creation": "found",
    "bibtex_citation": "",
    "eval_splits": [SPLIT],
    "eval_langs": ["eng-Latn"],
    "modalities": ["text", "image"],
}


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
        **_ABOUT,
    )


def _shown(*, held_out: bool) -> list[tuple[str, Image.Image]]:
    """Names and Twemoji's drawings of the concepts that the bundled model was trained on, or of the others."""
    from ssmoe_embed.vision.inputs import read_image

    pictures = dict(emoji_pictures("twemoji"))
    chosen = [one for one in emoji_concepts() if one["held_out"] == held_out and one["key"] in pictures]
    return [(one["label"], read_image(pictures[one["key"]])) for one in chosen]


def _png(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


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
        self._names = [name for name, _ in shown]
        rows = {"image": [_png(image) for _, image in shown], "label": list(range(len(shown)))}
        features = Features({"image": ImageFeature(), "label": Value("int64")})
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
        ids = [hashlib.sha256(name.encode()).hexdigest()[:16] for name, _ in shown]  # so ties are broken by chance
        texts = Dataset.from_dict({"id": [f"t{one}" for one in ids], "text": [NAMED.format(name) for name, _ in shown]})
        features = Features({"id": Value("string"), "image": ImageFeature()})
        rows = {"id": [f"i{one}" for one in ids], "image": [_png(image) for _, image in shown]}
        images = Dataset.from_dict(rows, features=features)
        queries, corpus = (texts, images) if self.by_text else (images, texts)
        own, other = ("t", "i") if self.by_text else ("i", "t")
        relevant = {f"{own}{one}": {f"{other}{one}": 1} for one in ids}
        split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {SPLIT: split}}
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
    """The paper's image tasks, or those that ship."""
    return paper_vision_tasks() if paper else [kind() for kind in OFFLINE_VISION]


def vision_task(name: str) -> AbsTask | None:
    """The image task of that name that ships, or mteb's under the paper's protocol; None if there is none."""
    if name in OFFLINE_NAMES:
        return next(task for task in vision_tasks(paper=False) if task.metadata.name == name)
    if name in CAPTIONED:
        return captioned_task(name)
    plain = name.removesuffix(SUFFIX)
    return with_templates(mteb.get_task(plain)) if name != plain and plain in CLASSIFICATION else None
