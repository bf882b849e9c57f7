"""mteb tasks that need no network, on data that ships; importing them imports mteb."""

from __future__ import annotations

from ssmoe_embed.common.lazy import require_mteb

require_mteb()

from mteb.abstasks import AbsTask  # noqa: E402

from ssmoe_embed.evaluation.tasks.offline.retrieval import (  # noqa: E402
    BibleVerseReranking,
    HowToRetrieval,
    WordNetExampleRetrieval,
    WordNetRelatedRetrieval,
    WordNetReverseRetrieval,
    retrieval_task,
)
from ssmoe_embed.evaluation.tasks.offline.texts import (  # noqa: E402
    ReviewSnippetSentimentClassification,
    WordNetDomainClassification,
    WordNetDomainClustering,
    WordNetParaphrasePairClassification,
    WordNetSimilaritySTS,
    WordRelatednessSTS,
)

__all__ = ["OFFLINE", "add_task", "offline_task", "offline_tasks", "retrieval_task"]

OFFLINE: tuple[type[AbsTask], ...] = (
    WordNetDomainClassification,
    ReviewSnippetSentimentClassification,
    WordNetDomainClustering,
    WordNetParaphrasePairClassification,
    BibleVerseReranking,
    WordNetExampleRetrieval,
    WordNetRelatedRetrieval,
    WordNetReverseRetrieval,
    HowToRetrieval,
    WordNetSimilaritySTS,
    WordRelatednessSTS,
)
_added: dict[str, AbsTask] = {}


def offline_tasks() -> list[AbsTask]:
    """New objects of all shipped tasks, in the order of a table's columns: at least one of each of six types.

    The bundled model's training saw none of the WordNet entries, reviews and verses; it may have seen single words of
    `WordRelatednessSTS`, and sections of manuals among the documents of `HowToRetrieval`.
    """
    return [kind() for kind in OFFLINE]


def offline_task(name: str) -> AbsTask | None:
    """The task of that name that ships or was added; None if there is none."""
    for kind in OFFLINE:
        if kind.metadata.name == name:
            return kind()
    return _added.get(name)


def add_task(task: AbsTask) -> None:
    """Make a task of one's own known by name for this process, to baselines that read a task's texts.

    Raises:
        ValueError: A shipped task has that name.
    """
    name = task.metadata.name
    if any(kind.metadata.name == name for kind in OFFLINE):
        raise ValueError(f"A shipped task is already called {name!r}; give yours another name.")
    _added[name] = task
