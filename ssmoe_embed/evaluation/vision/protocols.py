"""The paper's image tasks: mteb's where they are the same, and under names of their own where the protocol differs.

The paper asks for every class in 80 templates and takes the mean of the unit vectors (https://arxiv.org/abs/2605.30992, and
CLIP's own evaluation, https://arxiv.org/abs/2103.00020); mteb asks in one. Retrieval is mteb's, whose `hit_rate_at_k` is the
paper's R@k. The paper takes all 31,783 images of Flickr30k, which no task of mteb's has; mteb's takes its test split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from numpy.typing import NDArray

SUFFIX = "Paper"
CLASSIFICATION = ("CIFAR10ZeroShot", "CIFAR100ZeroShot", "STL10ZeroShot", "Caltech101ZeroShot", "Imagenet1kZeroShot")
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
        labels = self._normalize_labels(chosen[self.label_column_name], self.get_candidate_labels())
        return self._calculate_scores(labels, cosines)


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
