"""Tasks for the tests of evaluation: mteb's own mock tasks, and those that fail."""

import os
import signal

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


def _renamed(task, name):
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
    return _renamed(_Failing(), "Failing")


def unavailable():
    return _renamed(_Unavailable(), "Unavailable")


def killing():
    """A task that kills the process; `whole` is the same one without that."""
    return _renamed(_Killing(), "Victim")


def whole():
    return _renamed(MockClassificationTask(), "Victim")


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
