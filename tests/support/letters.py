"""Two encoders that count letters, and what mteb keeps of them on a task of each type."""

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClusteringLegacy
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from ssmoe_embed.evaluation.tasks.offline import offline_task
from ssmoe_embed.evaluation.tasks.retrieval import make_metadata

ONE_OF_EACH_TYPE = [
    "ReviewSnippetSentimentClassification",
    "WordNetDomainClustering",
    "WordNetParaphrasePairClassification",
    "BibleVerseReranking",
    "WordNetRelatedRetrieval",
    "WordRelatednessSTS",
]


class Letters(AbsEncoder):
    """Counts of letters, of runs of so many."""

    def __init__(self, run):
        self.run = run
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": f"test/letters-{run}", "revision": "1"})

    def encode(self, inputs, **kwargs):
        texts = [text.lower() for batch in inputs for text in batch["text"]]
        vectors = np.zeros((len(texts), 61), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for i in range(len(text) - self.run + 1):
                vector[sum(31**j * ord(c) for j, c in enumerate(text[i : i + self.run])) % 61] += 1
        return vectors


class SeveralSets(AbsTaskClusteringLegacy):
    """Sets of texts to be clustered each for itself; the second has one label only."""

    metadata = make_metadata("SeveralSets", "Clustering", "v_measure", "For tests.", ("nowhere", "1"))

    def load_data(self, num_proc=None, **kwargs):
        rng = np.random.default_rng(0)
        words = ["aaa", "bob", "xyz", "qq"]
        sets = [rng.integers(4, size=40).tolist(), [1] * 10, rng.integers(3, size=25).tolist()]
        sentences = [[words[i] * 3 + words[rng.integers(4)] for i in one] for one in sets]
        self.dataset = DatasetDict({"test": Dataset.from_dict({"sentences": sentences, "labels": sets})})
        self.data_loaded = True


def new_task(name):
    """A new object of a task, without its data."""
    return SeveralSets() if name == "SeveralSets" else offline_task(name)


def evaluations(name, folder):
    """Of each of the two encoders the folder of its predictions, and all its scores."""
    sides = []
    for model in (Letters(1), Letters(3)):
        predictions = folder / str(model.run)
        result = mteb.evaluate(
            model, [new_task(name)], cache=None, prediction_folder=predictions, show_progress_bar=False
        )
        sides.append((predictions, result.task_results[0].scores["test"][0]))
    return sides
