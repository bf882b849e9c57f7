"""Tasks that run without a network, on data that ships, where meaning rather than shared words decides."""

from ssmoe_embed.evaluation.offline.classification import ClassificationTask, ClusteringTask
from ssmoe_embed.evaluation.offline.pairs import PairClassificationTask, SimilarityTask
from ssmoe_embed.evaluation.offline.registry import offline_tasks
from ssmoe_embed.evaluation.offline.retrieval import RetrievalTask
from ssmoe_embed.evaluation.offline.task import Encode, OfflineTask

__all__ = [
    "ClassificationTask",
    "ClusteringTask",
    "Encode",
    "OfflineTask",
    "PairClassificationTask",
    "RetrievalTask",
    "SimilarityTask",
    "offline_tasks",
]
