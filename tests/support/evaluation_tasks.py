"""What the tests of evaluation share: mteb's own mock tasks, tasks that fail, and looking at results."""

import os
import signal
from pathlib import Path

from datasets import Dataset
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.mocks import (
    MockClassificationTask,
    MockClusteringTask,
    MockMultilingualSTSTask,
    MockPairClassificationTask,
    MockRerankingTask,
    MockRetrievalTask,
    MockSTSTask,
    MockSummarizationTask,
)

from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions

QUIET = EvaluationOptions(progress=False, batch_size=8)
METHODS = ["router", "smoe", "moee", "ev", "ssmoe"]
KINDS = (
    MockClassificationTask,
    MockClusteringTask,
    MockPairClassificationTask,
    MockRerankingTask,
    MockRetrievalTask,
    MockSTSTask,
    MockSummarizationTask,
    MockMultilingualSTSTask,
)


def all_kinds():
    """A new task of each kind."""
    return [kind() for kind in KINDS]


def renamed(task, name):
    """The task under another name."""
    task.metadata = task.metadata.model_copy(update={"name": name})
    return task


class _Failing(MockSTSTask):
    def _evaluate_subset(self, *args, **kwargs):
        raise RuntimeError("the metric is broken")


class _Unavailable(MockSTSTask):
    def load_data(self, **kwargs):
        raise ConnectionError("the hub does not answer")


class _Killing(MockClassificationTask):
    """Ends the process in the middle of its second evaluation, without a chance to tidy up."""

    seen = 0

    def _evaluate_subset(self, *args, **kwargs):
        type(self).seen += 1
        if type(self).seen == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._evaluate_subset(*args, **kwargs)


def failing():
    return renamed(_Failing(), "Failing")


def unavailable():
    return renamed(_Unavailable(), "Unavailable")


def killing():
    """A task that kills the process; `whole` is the same one without that."""
    return renamed(_Killing(), "Victim")


def whole():
    return renamed(MockClassificationTask(), "Victim")


def average():
    """A task that averages two others."""

    class _Average(AbsTaskAggregate):
        metadata = AggregateTaskMetadata(
            name="Average",
            description="The mean of two tasks.",
            tasks=[MockSTSTask(), MockRetrievalTask()],
            main_score="main",
            type="Retrieval",
            eval_splits=["test"],
        )

    return _Average()


def rated_pairs():
    """A task of forty pairs of sentences, so that a bootstrap has something to draw."""
    task = MockSTSTask()
    task.load_data()
    words = ["rain", "soup", "gate", "letter", "dog", "train", "music", "stone"]
    first = [f"The {words[i % 8]} is {words[(3 * i) % 8]} today." for i in range(40)]
    second = [f"A {words[(i * i) % 8]} was {words[(5 * i) % 8]} yesterday." for i in range(40)]
    rows = {"sentence1": first, "sentence2": second, "score": [float((7 * i) % 11) for i in range(40)]}
    task.dataset = {"test": Dataset.from_dict(rows)}
    return task


def contents(folder):
    """Every result file with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.json")}


def main_scores(report):
    """Every score by method, corruption and task."""
    return {(score.method, score.corruption, score.task): score.score for score in report.scores()}
