"""Image tasks by name."""

from __future__ import annotations

from mteb.abstasks import AbsTask

from ssmoe_embed.evaluation.vision.protocols import (
    CAPTIONED,
    CLASSIFICATION,
    SUFFIX,
    captioned_task,
    paper_vision_tasks,
    with_templates,
)

OFFLINE_NAMES = ("EmojiStyleZeroShot", "EmojiConceptZeroShot", "EmojiT2IRetrieval", "EmojiI2TRetrieval")
"""The image tasks whose data come with this package."""


def vision_tasks(*, paper: bool) -> list[AbsTask]:
    """The paper's image tasks, or those that ship."""
    if paper:
        return paper_vision_tasks()
    from ssmoe_embed.evaluation.vision.offline import OFFLINE_VISION

    return [kind() for kind in OFFLINE_VISION]


def vision_task(name: str) -> AbsTask | None:
    """The image task of that name that ships, or mteb's under the paper's protocol; None if there is none."""
    import mteb

    if name in OFFLINE_NAMES:
        return next(task for task in vision_tasks(paper=False) if task.metadata.name == name)
    if name in CAPTIONED:
        return captioned_task(name)
    plain = name.removesuffix(SUFFIX)
    return with_templates(mteb.get_task(plain)) if name != plain and plain in CLASSIFICATION else None
